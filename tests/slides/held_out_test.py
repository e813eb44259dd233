"""Stroma percentages of held-out images from tiles and from masks, computed by hand."""

import pathlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_pipelines.liver_tiles.spec import TilesSpec
from histojax.core.errors import RunError
from histojax.slides.tsr import held_out
from histojax.slides.tsr.spec import TSRSpec

LABELS = ("tumor", "stroma", "fat")
VALUES = (3, 7, 9)


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """`a`: 20 × 40 pixels, a quarter tumor, three quarters stroma; `b`: fat throughout."""
    for name in ("img", "mask"):
        (tmp_path / name).mkdir()
    for name, values in (("a", [3] * 10 + [7] * 30), ("b", [9] * 40)):
        pixels = np.random.default_rng(len(values)).integers(0, 256, (20, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "img" / f"{name}.png")
        mask = np.broadcast_to(np.array(values, np.uint8), (20, 40))
        Image.fromarray(np.ascontiguousarray(mask)).save(tmp_path / "mask" / f"{name}.png")
    return tmp_path


def run(root: pathlib.Path, name: str = "one", **changes: object) -> held_out.Run:
    # Of a's tiles of 20 × 20 the left one is tumor (0.9), the right one both, 0.3 to 0.6; b has only fat.
    table = pd.DataFrame(
        {
            "image_id": ["img/a@x0y0", "img/a@x20y0", "img/b@x0y0", "img/b@x20y0"],
            "split": ["test", "test", "test", "train"],
            "prob_tumor": [0.9, 0.3, 0.0, 0.9],
            "prob_stroma": [0.1, 0.6, 0.0, 0.9],
            "prob_fat": [0.0, 0.0, 0.9, 0.9],
        }
    )
    tiles = TilesSpec(labels=LABELS, mask_values=VALUES, size=20)
    values = {"predictions": table, "root": root, "tiles": tiles, "labels": LABELS, "name": name}
    return held_out.Run(**values | {"thresholds": {"tumor": 0.25, "stroma": 0.5, "fat": 0.5}} | changes)


def test_by_hand(root: pathlib.Path) -> None:
    found = held_out.percentages([run(root)], TSRSpec())
    assert found["image"].tolist() == ["img/a", "img/b"]
    assert found["tiles"].tolist() == [2, 1]  # the tile that was trained on is not among them
    # Tumor 1 + 0.3/0.9, stroma 0.6/0.9: 100 · (2/3) / 2.
    assert found.loc[0, "predicted"] == pytest.approx(100 / 3)
    assert found.loc[0, "reference"] == 75
    assert np.isnan(found.loc[1, ["predicted", "reference"]].astype(float)).all()


def test_the_runs_own_thresholds_and_the_policy_count(root: pathlib.Path) -> None:
    higher = run(root, thresholds={"tumor": 0.5, "stroma": 0.5, "fat": 0.5})  # the right tile is stroma only
    assert held_out.percentages([higher], TSRSpec()).loc[0, "predicted"] == pytest.approx(50)
    assert held_out.percentages([run(root)], TSRSpec(policy="half")).loc[0, "predicted"] == pytest.approx(25)
    by_probability = held_out.percentages([run(root)], TSRSpec(measure="probability"))
    assert by_probability.loc[0, "predicted"] == pytest.approx(100 * 0.7 / 1.9)


def test_an_image_counts_once(root: pathlib.Path) -> None:
    with pytest.raises(RunError, match="img/a, img/b: held out by more than one run"):
        held_out.percentages([run(root), run(root, "two")], TSRSpec())


def test_runs_without_masks_are_refused(root: pathlib.Path) -> None:
    table = run(root).predictions
    with pytest.raises(RunError, match="one: the test split has no tiles cut from images with masks"):
        held_out.percentages([run(root, predictions=table.assign(image_id="x"))], TSRSpec())
    with pytest.raises(RunError, match="the test split has no tiles"):
        held_out.percentages([run(root, predictions=table.assign(split="train"))], TSRSpec())
    (root / "img" / "a.png").unlink()
    with pytest.raises(RunError, match=r"image img/a is missing from"):
        held_out.percentages([run(root)], TSRSpec())
