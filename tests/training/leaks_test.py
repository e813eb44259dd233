"""A run on images of one's own looks for nearly identical pictures on two sides before its first epoch."""

import json
import pathlib

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.audit import crossing, measures
from histojax.core.errors import RunError
from histojax.training import loop
from tests.helpers import tiny_config


def blotches(seed: int) -> np.ndarray:
    """Different pictures with structure at all scales, as tissue has."""
    noise = np.random.default_rng(seed).normal(size=(64, 64, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return np.clip(128 + 40 * smooth / smooth.std() + 10 * noise, 0, 255).astype(np.uint8)


@pytest.fixture
def config(tmp_path: pathlib.Path) -> ConfigDict:
    """Six train, two val and two test images, in a table that states the sides; one test image is a mirrored copy."""
    sides = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    root = tmp_path / "images"
    root.mkdir()
    lines = ["path,label,split"]
    for i, side in enumerate(sides):
        picture = blotches(i) if i < 8 else cv2.flip(blotches(i - 8), 1)
        if i == 9:  # blank pictures look alike and are no leak
            picture = np.full((64, 64, 3), 240, np.uint8)
            cv2.imwrite(str(root / "5.png"), picture)
        cv2.imwrite(str(root / f"{i}.png"), picture if i != 9 else picture - 1)
        lines.append(f"{i}.png,{'ab'[i % 2]},{side}")
    cv2.imwrite(str(root / "8.jpg"), cv2.imread(str(root / "8.png")), [cv2.IMWRITE_JPEG_QUALITY, 60])
    (root / "table.csv").write_text("\n".join(lines).replace("8.png", "8.jpg"))
    config = tiny_config.get_config("mini")
    config.data.update(pipeline="image_folder", task="classes", magnification="", root=str(root), synthetic=False)
    config.data.prepared_dir, config.data.split.protocol = str(tmp_path / "prepared"), "given"
    config.train.update(epochs=1, batch_size=4)
    return config


def test_a_leak_stops_the_run_before_it_writes_anything(tmp_path: pathlib.Path, config: ConfigDict) -> None:
    with pytest.raises(RunError) as caught:
        loop.train_and_evaluate(config, tmp_path / "run")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("leak: pairs of nearly identical pictures on two sides of the split")
    assert lines[1] == "  8 (test) and 0 (train, mirrored left to right)"
    assert "--config.data.allow_leak=true" in lines[2]
    assert not [path for path in (tmp_path / "run").rglob("*") if not path.name.startswith(".")]


@pytest.mark.slow
def test_an_allowed_leak_is_counted_in_the_results(tmp_path: pathlib.Path, config: ConfigDict) -> None:
    config.data.allow_leak = True
    assert loop.train_and_evaluate(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (warning,) = [text for text in results["data"]["split_warnings"] if text.startswith("leak")]
    assert (
        warning == "leak: pairs of nearly identical pictures on two sides of the split, which make results too good: 1"
    )


def test_pictures_are_measured_once_and_again_if_the_file_is_damaged(
    tmp_path: pathlib.Path, config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.data.split.protocol = "image_with_copies"  # such a protocol wants copies on both sides
    config.data.allow_leak = False
    assert loop.train_and_evaluate(config, tmp_path / "run")
    config.data.split.protocol = "given"
    for _ in range(2):
        with pytest.raises(RunError, match="too good: 1\n"):
            loop.train_and_evaluate(config, tmp_path / "other")
    (kept,) = (tmp_path / "prepared").rglob("greys.npy")
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(RunError, match="too good: 1\n"):
        loop.train_and_evaluate(config, tmp_path / "other")
    monkeypatch.setattr(crossing, "decode", None)  # not needed once measured
    with pytest.raises(RunError, match="too good: 1\n"):
        loop.train_and_evaluate(config, tmp_path / "other")
    assert measures.is_blank(np.full((64, 64), 240, np.uint8))
