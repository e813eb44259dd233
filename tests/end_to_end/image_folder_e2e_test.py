"""A run on class folders is the run of the BreakHis pipeline on the same images, bit for bit."""

import pathlib

import pandas as pd
import pytest

from histojax.evaluation import predictions
from histojax.training import loop
from tests.helpers import quick_run

pytestmark = pytest.mark.slow


def in_class_folders(images: pathlib.Path, root: pathlib.Path, every: int = 1) -> pathlib.Path:
    for label in ("benign", "malignant"):
        (root / label).mkdir(parents=True)
        for image in sorted(images.rglob(f"{label}/SOB/*/*/100X/*.png"))[::every]:
            (root / label / image.name).write_bytes(image.read_bytes())
    return root


def trained(root: pathlib.Path, workdir: pathlib.Path, **fields: object) -> pd.DataFrame:
    config = quick_run.get_config(data__root=str(root), data__split__protocol="image", **fields)
    assert loop.train_and_evaluate(config, workdir)
    return predictions.read(workdir / "predictions")


@pytest.mark.parametrize("source", ["synthetic", "real"])
def test_both_pipelines_train_the_same_model(
    source: str, tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    images = quick_run.images() if source == "synthetic" else request.getfixturevalue("breakhis_part")
    root = in_class_folders(images, tmp_path / "root", every=1 if source == "synthetic" else 2)
    fields = {"data__pipeline": "image_folder", "data__task": "classes", "data__magnification": ""}
    folder = trained(root, tmp_path / "folder", **fields, data__allow_leak=True)
    breakhis = trained(root, tmp_path / "breakhis")
    scores = [name for name in breakhis if name.startswith("prob")]
    assert len(scores) == 2
    assert len(breakhis) > 8
    columns = ["image_id", "split", *scores]
    pd.testing.assert_frame_equal(folder[columns], breakhis[columns], check_exact=True)
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("folder", "breakhis")]
    assert len(logs[0]) == len(logs[1]) > 2
