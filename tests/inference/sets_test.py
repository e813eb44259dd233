"""Prediction sets of `histojax predict`: from the run's validation predictions to the columns and the summary."""

import json
import os
import pathlib

import numpy as np
import pandas as pd
import pytest

from histojax.core.errors import RunError
from histojax.evaluation import conformal, predictions
from histojax.inference.predict import sets
from histojax.inference.predictor import Predictor
from tests.conftest import WriteImages
from tests.helpers.colour_model import ColourModel
from tests.helpers.command import histojax
from tests.helpers.prediction_tables import class_table

CLASSES = ("red", "green", "blue")


def validation_table(labels: bool = False, seed: int = 0, n_patients: int = 12) -> pd.DataFrame:
    """72 validation images of twelve patients, as a run predicted them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3), 72)
    truth = (rng.random((72, 3)) < p).astype(int) if labels else p.argmax(1)
    patients = [f"p{i % n_patients}" for i in range(72)]
    return predictions.make_table([f"v{i:02}" for i in range(72)], truth, p, CLASSES, split="val", patient_id=patients)


def store(run: pathlib.Path, table: pd.DataFrame, step: int = 7) -> pathlib.Path:
    """Write what a finished run holds; return the path of its checkpoint."""
    path = run / "checkpoints" / "best" / str(step)
    path.mkdir(parents=True)
    predictions.write(table, run / "predictions")
    (run / "results.json").write_text(json.dumps({"checkpoint_step": step}))
    return path


def model_of(path: pathlib.Path, step: int = 7, temperatures: list[float] | None = None) -> ColourModel:
    model = ColourModel()
    model.path, model.step, model.temperatures = path, step, temperatures
    return model


def test_sets_rest_on_the_validation_predictions_of_the_run(tmp_path: pathlib.Path) -> None:
    table = validation_table()
    test = class_table(k=3, n=30).rename(columns={f"prob_c{i}": f"prob_{name}" for i, name in enumerate(CLASSES)})
    test["label"] = "blue"  # most of them wrongly predicted, so they would lower the limit
    model = model_of(store(tmp_path / "run", pd.concat([table, test])))
    found = sets.fit([model], 0.9, conformal.ALL)
    np.testing.assert_array_equal(found.least, conformal.fit(table, 0.9).least)
    # An evaluation of another checkpoint has a folder of its own.
    other = tmp_path / "run" / "checkpoints" / "last" / "9"
    with pytest.raises(
        RunError, match=r"no validation predictions of its checkpoint at step 9; write them by `histojax"
    ):
        sets.fit([model_of(other, 9)], 0.9, conformal.ALL)
    later = validation_table(seed=1)
    predictions.write(later, tmp_path / "run" / "eval" / "last-9" / "predictions")
    (tmp_path / "run" / "eval" / "last-9" / "results.json").write_text('{"checkpoint_step": 9}')
    found = sets.fit([model_of(other, 9)], 0.9, conformal.ALL)
    np.testing.assert_array_equal(found.least, conformal.fit(later, 0.9).least)


def test_the_final_run_of_crossval_has_out_of_fold_predictions(tmp_path: pathlib.Path) -> None:
    table = validation_table()
    path = store(tmp_path / "study" / "final", table.assign(split="test"))
    (tmp_path / "study" / "crossval.json").write_text('{"final": "final", "runs": ["fold_0", "fold_1"]}')
    predictions.write(table.assign(split="out_of_fold"), tmp_path / "study" / "out_of_fold")
    found = sets.fit([model_of(path)], 0.9, conformal.CLASS)
    np.testing.assert_array_equal(found.least, conformal.fit(table, 0.9, conformal.CLASS).least)


def test_several_runs_need_the_same_validation_images(tmp_path: pathlib.Path) -> None:
    one, two = validation_table(), validation_table(seed=1)
    two["label"] = one["label"]
    models = [
        model_of(store(tmp_path / str(i), table.sample(frac=1, random_state=i)), temperatures=[2.0])
        for i, table in enumerate((one, two))
    ]
    columns = [f"prob_{name}" for name in CLASSES]
    mean = one.assign(**dict(zip(columns, ((one[columns] + two[columns]) / 2).to_numpy().T, strict=True)))
    assert sets.fit(models, 0.9, conformal.ALL).least == pytest.approx(conformal.fit(mean, 0.9).least)
    calibrated = sets.fit(models[:1], 0.9, conformal.ALL, calibrated=True).least
    scaled = np.sqrt(one[columns].to_numpy())
    scaled = one.assign(**dict(zip(columns, (scaled / scaled.sum(1, keepdims=True)).T, strict=True)))
    assert calibrated == pytest.approx(conformal.fit(scaled, 0.9).least)
    third = model_of(store(tmp_path / "third", one.iloc[1:]))
    with pytest.raises(RunError, match=r"runs 1 and 2 have different validation images"):
        sets.fit([models[0], third], 0.9, conformal.ALL)


def test_what_weakens_the_sets_is_a_warning(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    table = validation_table()
    path = store(tmp_path / "run", table)
    sides = table[["image_id", "label", "patient_id"]].assign(split="val")
    sides.loc[0, "split"] = "train"  # an image of p0
    sides.to_csv(tmp_path / "run" / "split.csv", index=False)
    sets.fit([model_of(path)], 0.9, conformal.ALL)
    assert "1 of 12 validation patients were also trained on" in caplog.text
    unknown = store(tmp_path / "unknown", table.assign(patient_id=""))
    sets.fit([model_of(unknown)], 0.9, conformal.ALL)
    assert "patients of the validation images are unknown; the sets rest on images" in caplog.text


def test_a_checkpoint_elsewhere_and_too_few_patients_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RunError, match=r"copy/7 is not in a work directory"):
        sets.fit([model_of(tmp_path / "copy" / "7")], 0.9, conformal.ALL)
    path = store(tmp_path / "run", validation_table(n_patients=8))
    with pytest.raises(RunError, match=r"--sets=0.9: .*run/.*: sets that .* at least 9 patients, and there are 8"):
        sets.fit([model_of(path)], 0.9, conformal.ALL)
    (tmp_path / "run" / "predictions.parquet").write_text("damaged")
    with pytest.raises(RunError, match=r"predictions\.parquet cannot be read .*rerun the command that trained"):
        sets.fit([model_of(path)], 0.8, conformal.ALL)


@pytest.mark.parametrize("labels", [False, True], ids=["classes", "labels"])
def test_the_table_and_its_summary(
    labels: bool, tmp_path: pathlib.Path, write_images: WriteImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(tmp_path / "run", validation_table(labels))

    def load(run: str, batch_size: int | None) -> ColourModel:
        del run
        model = ColourModel(batch_size=batch_size or 4, labels=labels)
        model.path, model.step = path, 7
        return model

    monkeypatch.setattr(Predictor, "load", load)
    os.chdir(tmp_path)
    write_images(tmp_path / "images", [f"{i}.png" for i in range(12)])
    done = histojax("predict", "run", "images", "--output=out.csv", "--sets=0.9", "--abstain")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out.csv", na_filter=False)
    rule = conformal.fit(validation_table(labels), 0.9)
    held = rule.held(table[[f"prob_{name}" for name in CLASSES]].to_numpy())
    lines = done.stdout.splitlines()
    start = lines.index("sets that hold the truth with probability 0.9, from 12 validation patients:")
    for line, (name, one) in zip(lines[start + 2 :], held.items(), strict=True):
        end = f"_{name}" if name else ""
        assert table[f"predicted_set{end}"].tolist() == conformal.texts(one, rule.answers)
        answers = table[f"predicted_or_abstained{end}"]
        assert answers.tolist() == conformal.answers(one, rule.answers)
        counts = [
            (one.sum(1) == 1).sum(),
            (one.sum(1) > 1).sum(),
            (one.sum(1) == 0).sum(),
            (answers == "abstained").sum(),
        ]
        assert line.split() == [
            name or "images",
            *(f"{count} ({count / 12:.1%})".split()[i] for count in counts for i in (0, 1)),
        ]
    assert "predicted" in table or labels
    plain = histojax("predict", "run", "images", "--output=out.parquet", "--sets=0.9", "--sets_by=all")
    assert plain.returncode == 0, plain.stderr
    assert not [name for name in pd.read_parquet(tmp_path / "out.parquet") if "abstained" in name]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--abstain"], "--abstain needs --sets"),
        (["--sets_by=class"], "--sets_by needs --sets"),
        (["--sets=0.9", "--tta=dihedral"], "--sets with --tta=dihedral"),
        (["--sets=1"], "1 is not"),
    ],
)
def test_flags_that_do_not_fit_together(flags: list[str], message: str, tmp_path: pathlib.Path) -> None:
    done = histojax("predict", tmp_path, tmp_path, *flags)
    assert done.returncode in (1, 2)
    assert message in done.stderr
