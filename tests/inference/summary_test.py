"""What `histojax predict` says besides the table: other magnifications, a summary, an exit code."""

import os
import pathlib

import pandas as pd
import pytest

from histojax.inference.novelty.scorer import NoveltyScorer
from histojax.inference.predict.images import ImageRef
from histojax.inference.predict.summary import magnification_warnings
from histojax.inference.predictor import Predictor
from tests.conftest import WriteImages
from tests.helpers.colour_model import ColourModel
from tests.helpers.command import histojax

NAMES = [f"SOB_B_A-14-{patient}-{magnification}-{n:03}.png" for patient in ("1", "2") for magnification in (40, 100)
         for n in (1, 2)]  # fmt: skip


@pytest.fixture(params=[False, True], ids=["one class", "labels"])
def run(request: pytest.FixtureRequest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder in place of a run, whose model looks at colours and was trained at 100X."""

    def load(path: str, batch_size: int | None) -> ColourModel:
        del path
        model = ColourModel(batch_size=batch_size or 4, labels=request.param)
        model.magnification = "100X"
        return model

    monkeypatch.setattr(Predictor, "load", load)
    monkeypatch.setattr(NoveltyScorer, "of_predictor", lambda predictor: None)
    (tmp_path / "run").mkdir()
    os.chdir(tmp_path)
    return tmp_path / "run"


def test_the_summary_counts_what_the_table_holds(run: pathlib.Path, write_images: WriteImages) -> None:
    folder = run.parent
    write_images(folder / "images", [*NAMES, "other.png"])
    (folder / "images" / "broken.png").write_text("")
    done = histojax("predict", run, "images")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(folder / "predictions.csv")
    first, *rest = done.stdout.splitlines()
    assert first == f"9 of 10 images of 2 patients are in {folder}/predictions.csv"
    for name, line in zip(("red", "green", "blue"), rest, strict=False):
        count = (table["predicted"] == name if "predicted" in table else table[f"predicted_{name}"]).sum()
        assert line.split() == [name, str(count), f"{count / 9:.1%}"]
    assert rest[3:] == [f"1 of 10 images could not be read: see {folder}/predictions.failed.csv"]
    assert f"no --output is given: writing {folder}/predictions.csv" in done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "trained on images at 100X" in warning
    assert "4 of 10 images (4 at 40X)" in warning


def test_nothing_readable_is_an_error(run: pathlib.Path) -> None:
    (run.parent / "images").mkdir()
    for name in ("1.png", "2.png"):
        (run.parent / "images" / name).write_text("no image")
    done = histojax("predict", run, "images", "--output=out.csv")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == f"2 of 2 images could not be read: see {run.parent}/out.failed.csv"
    assert "error: no image could be read" in done.stderr
    assert "no --output" not in done.stderr


def test_magnifications_of_names_and_lists() -> None:
    refs = [ImageRef("a", "SOB_B_A-14-1-40-001.png"), ImageRef("b", "b.png", "", {"magnification": "200X"})]
    refs += [ImageRef("c", "c.png"), ImageRef("d", "SOB_B_A-14-1-100-001.png")]
    (line,) = magnification_warnings(refs, ["100X", "", "100X"])
    assert "2 of 4 images (1 at 200X, 1 at 40X)" in line
    assert len(list(magnification_warnings(refs, ["100X", "40X"]))) == 2
    assert list(magnification_warnings(refs, [""])) == []
    assert list(magnification_warnings(refs[2:], ["100X"])) == []
