"""`benchmarks/stain_augmentation.py`: folds are pooled, losses are paired, and studies of other folds are refused."""

import json
import pathlib

import numpy as np
import pandas as pd
import pytest

from benchmarks import stain_augmentation
from histojax.core.errors import RunError
from histojax.evaluation import predictions
from histojax.studies.robustness import shifts
from tests.helpers.prediction_tables import class_table

STAINS = [shift for shift in shifts.catalogue(microns=False, image_size=1).values() if shift.kind == "stain"]


def worse(table: pd.DataFrame, images: int) -> pd.DataFrame:
    """The table with the probabilities of its first images exchanged, and so their answers."""
    out, columns = table.copy(), ["prob_benign", "prob_malignant"]
    out.loc[: images - 1, columns] = table.loc[: images - 1, columns[::-1]].to_numpy()
    return out


def study(folder: pathlib.Path, lost: int, **columns: object) -> pathlib.Path:
    """Two folds of 120 images, all answered right as they are, and `lost` of them wrong with every other stain."""
    for number in (1, 2):
        table = class_table(**columns)
        right = np.eye(2)[(table["label"] == "malignant").astype(int)] * 0.8 + 0.1
        table[["prob_benign", "prob_malignant"]] = right
        place = folder / f"fold_{number}" / "robustness" / "predictions"
        predictions.write(table, place / "unshifted")
        for shift in STAINS:
            for strength in shift.strengths[1:]:
                # A dot and what follows in a file's name are no suffix here.
                (place / shift.name).mkdir(parents=True, exist_ok=True)
                worse(table, lost).to_parquet(place / shift.name / f"{strength:g}.parquet", index=False)
    return folder


def test_losses_are_paired_over_pooled_folds(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    augmented, plain = study(tmp_path / "with", 12), study(tmp_path / "without", 36)
    stain_augmentation.main([str(augmented), str(plain), "--output", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["n_images"], found["n_patients"], found["strength"]) == (240, 10, 0.5)
    value = {name: row["accuracy"]["value"] for name, row in found["rows"].items()}
    assert value == pytest.approx({
        "augmented, own stains": 1.0,
        "augmented, loss to other stains": 0.1,
        "plain, own stains": 1.0,
        "plain, loss to other stains": 0.3,
        "difference, own stains": 0.0,
        "difference, loss to other stains": -0.2,
        "loss over half of the plain loss": -0.05,
    })  # fmt: skip
    assert "plain, loss to other stains" in capsys.readouterr().out


def test_what_cannot_be_compared(tmp_path: pathlib.Path) -> None:
    one, other = study(tmp_path / "one", 0), study(tmp_path / "other", 0, n=60)
    with pytest.raises(RunError, match="have different test images"):
        stain_augmentation.compare(one, other)
    with pytest.raises(RunError, match=r"nothing has no fold_1, fold_2, …"):
        stain_augmentation.compare(one, tmp_path / "nothing")
    (one / "fold_2" / "robustness" / "predictions" / STAINS[0].name / "0.5.parquet").unlink()
    with pytest.raises(RunError, match=r"0\.5\.parquet is missing: run `histojax robustness` with --shifts stain"):
        stain_augmentation.compare(one, one)
