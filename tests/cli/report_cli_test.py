"""`histojax report`: runs and tables in, one page, its figures and cards out."""

import csv
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from configs import dala_resnet50_breakhis
from histojax.core.files import write_json
from histojax.data.sources import open_dataset
from histojax.evaluation import predictions, results
from histojax.evaluation.report import report_json
from tests.helpers import quick_run
from tests.helpers.command import histojax
from tests.helpers.prediction_tables import labels_table, with_validation
from tests.helpers.programs import run

FILES = {"report.html", "report.json", "metrics.csv"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What a run leaves, without its training: real prepared images, made-up probabilities."""
    folder = tmp_path_factory.mktemp("runs") / "made_up"
    config = dala_resnet50_breakhis.get_config("smoke")
    config.data.root = str(quick_run.images(folder.parent / "images", 2))
    config.evaluation.resamples = 60
    dataset = open_dataset(config.data)
    rng = np.random.default_rng(0)
    n = len(dataset.records)
    p = rng.beta(1 + dataset.labels, 2 - dataset.labels)
    sides = np.array(["val", "test", "test"])[np.arange(n) % 3]
    columns = {name: dataset.records.column(name) for name in ("patient_id", "magnification", "case_id", "subtype")}
    table = predictions.make_table(
        dataset.records.column("image_id"), dataset.labels, np.stack([1 - p, p], 1), dataset.classes, split=sides,
        **columns,
    )  # fmt: skip
    predictions.write(table, folder / "predictions")
    facts = {"protocol": "image-level", "split_hash": "00ff", "model": "dala_resnet50", "checkpoint_step": 7}
    facts["data"] = {"description": f"images of {config.data.root}", "synthetic": True}
    facts["splits"] = results.summarise(table, positive="malignant", n_resamples=60, seed=config.seed)
    write_json(folder / "results.json", facts)
    (folder / "config.json").write_text(config.to_json())
    lines = [{"step": step, "train/loss": 1 / step, "val/loss": 2 / step, "val/accuracy": 0.5} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "tr')
    with open(folder / "split.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "split", "label", "patient_id", "case_id", "magnification", "group", "note"])
        for row in table.itertuples():
            writer.writerow([row.image_id, row.split, row.label, row.patient_id, row.case_id, "100X", "", ""])
        writer.writerow(["left", "", "benign", "p", "c", "100X", "", "pixel-identical"])
    return folder


def test_a_run_gives_a_report_and_a_card(workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    done = histojax("report", workdir, "--output", out, "--license", "cc-by-4.0")
    assert done.returncode == 0
    assert "== made_up" in done.stdout
    assert "note: split.csv is not the split of these results" in done.stdout
    assert "balanced accuracy" in done.stdout
    assert "brier" not in done.stdout
    assert "brier" in histojax("report", workdir, "--output", tmp_path / "verbose", "--verbose", "--worst", "0").stdout
    assert {path.name for path in out.iterdir()} == FILES | {"MODEL_CARD.md"}
    found = json.loads((out / "report.json").read_text())["sources"][0]
    # The run's own resamples and seed: the same figures as its results.json.
    assert found["splits"] == json.loads((workdir / "results.json").read_text())["splits"]
    assert found["thresholds"].keys() == {"malignant"}
    page = (out / "report.html").read_text()
    errors = found["worst"]["n_errors"]
    assert page.count("data:image/jpeg;base64,") == min(errors, 24) > 0  # of the prepared dataset
    for text in ("Training curves", "pixel-identical: 1", "are on several sides", "The images are synthetic",
                 "do not hash to 00ff"):  # fmt: skip
        assert text in page, text
    assert str(workdir) not in page
    assert str(workdir.parent) not in page
    card = (out / "MODEL_CARD.md").read_text()
    assert 'license: "cc-by-4.0"' in card or "license: cc-by-4.0" in card
    assert str(workdir.parent) not in card


def test_locked_thresholds_of_a_run_are_used(workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = pathlib.Path(shutil.copytree(workdir, tmp_path / "run"))
    facts = json.loads((copy / "results.json").read_text())
    write_json(copy / "results.json", facts | {"thresholds": {"malignant": 0.31}})
    assert histojax("report", copy, "--output", tmp_path / "out", "--worst", "0").returncode == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())["sources"][0]
    assert found["thresholds"] == {"malignant": 0.31}
    assert found["threshold_origin"] == "locked by the run on validation images"
    assert (
        histojax(
            "report", copy, "--output", tmp_path / "out", "--threshold", "malignant=0.6", "--worst", "0"
        ).returncode
        == 0
    )
    found = json.loads((tmp_path / "out" / "report.json").read_text())["sources"][0]
    assert found["decisions"][0]["points"][1]["threshold"] == 0.6


def test_tables_are_compared_and_pictures_found(breakhis_part: pathlib.Path, tmp_path: pathlib.Path) -> None:
    names = sorted(path.stem for path in breakhis_part.rglob("*.png"))[:40]
    rng = np.random.default_rng(0)
    for model in ("a", "b"):
        p = rng.random(40)
        table = predictions.make_table(
            names, [int("_M_" in name) for name in names], np.stack([1 - p, p], 1), ["benign", "malignant"],
            split="test", patient_id=[name.split("-100-")[0] for name in names],
        )  # fmt: skip
        predictions.write(table, tmp_path / model / "predictions")
    words = [tmp_path / "a" / "predictions.csv", tmp_path / "b" / "predictions.parquet", "--resamples", "50"]
    out = tmp_path / "out"
    done = histojax("report", *words, "--output", out, "--images", breakhis_part, "--worst", "5")
    assert done.returncode == 0
    assert "b/predictions against a/predictions: accuracy" in done.stdout
    assert {path.name for path in out.iterdir()} == FILES
    assert (out / "report.html").read_text().count("data:image/jpeg;base64,") == 10
    assert histojax("report", *words, "--output", out, "--names", "first,second").returncode == 0
    page = (out / "report.html").read_text()
    assert "second against first" in page
    assert "the table has no column `path`" in page

    # Paths in the table are relative to it; a path without a file is reported.
    shutil.copy(next(breakhis_part.rglob(f"{names[0]}.png")), tmp_path / "picture.png")
    table = predictions.read(tmp_path / "a" / "predictions.csv").assign(path="nowhere.png")
    table.loc[:, ["prob_benign", "prob_malignant"]] = np.where(table[["label"]] == "benign", [0.9, 0.1], [0.1, 0.9])
    table.loc[:1, ["prob_benign", "prob_malignant"]] = np.where(
        table[["label"]][:2] == "benign", [0.1, 0.9], [0.9, 0.1]
    )
    table.loc[0, "path"] = "picture.png"
    predictions.write(table, tmp_path / "c")
    assert histojax("report", tmp_path / "c.csv", "--output", out).returncode == 0
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 1
    assert "No such file" in page


def test_several_labels_and_an_audit(tmp_path: pathlib.Path) -> None:
    predictions.write(labels_table(), tmp_path / "labels")
    audit = {"leaks": ["one <b>picture"], "warnings": [], "images": 9, "pictures": 8, "duplicates": [{}], "splits": {}}
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    words = [tmp_path / "labels.csv", "--output", tmp_path / "out", "--resamples", "40"]
    done = histojax("report", *words, "--threshold", "tumor=0.3", "--audit", tmp_path / "audit.json")
    assert done.returncode == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())["sources"][0]
    assert found["thresholds"] == {"tumor": 0.3, "stroma": 0.5, "fat": 0.5}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Audit: leaks" in page
    assert "one &lt;b&gt;picture" in page


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.csv"], "nowhere.csv: no such work directory or table"),
        (["{root}"], "has neither predictions.parquet nor predictions.csv"),
        (["{root}/t.csv", "--threshold", "malignant"], "--threshold=malignant: 'malignant' is not a threshold"),
        (["{root}/t.csv", "--threshold", "malignant=2"], "--threshold=malignant=2: 'malignant=2' is not a threshold"),
        (["{root}/t.csv", "--threshold", "x=0.4"], "--threshold for x"),
        (["{root}/t.csv", "{root}/t.csv"], "the same source was given twice"),
        (["{root}/t.csv", "--names", "a,b"], "--names=a,b: give 1 different names"),
        (["{root}/t.csv", "--split", "train"], "no split 'train'"),
        (["{root}/t.csv", "--audit", "{root}/t.csv"], "is not an audit.json"),
        (["{root}/t.csv", "--output", "{root}/t.csv"], "t.csv is a file, and must be a folder"),
        (["{root}/t.csv", "--images", "{root}/none"], "none: no such file or folder"),
    ],
)
def test_user_errors_have_a_message(tmp_path: pathlib.Path, argv: list[str], message: str) -> None:
    predictions.write(with_validation(), tmp_path / "t")
    words = [word.format(root=tmp_path) for word in argv]
    output = [] if "--output" in argv else ["--output", tmp_path / "out"]
    done = histojax("report", *words, "--resamples", "0", *output)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_the_report_needs_no_jax(tmp_path: pathlib.Path) -> None:
    predictions.write(with_validation(), tmp_path / "t")
    argv = ["report", str(tmp_path / "t.csv"), "--resamples", "20", "--output", str(tmp_path / "report")]
    program = f"import sys; from histojax.cli.main import main; main({argv}); assert 'jax' not in sys.modules"
    done = run([sys.executable, "-c", program])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "report.html").is_file()
    assert "== t\n" in done.stdout
    assert report_json.USE in (tmp_path / "report" / "report.html").read_text()
