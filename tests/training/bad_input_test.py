"""Unusable images stop a run before training, with a message that names the file and the reason."""

import pathlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from configs.dala_resnet50_breakhis import get_config
from data_pipelines.errors import DataError
from histojax.core.errors import RunError
from histojax.data.sources import open_dataset
from histojax.training.build import split_spec
from histojax.training.loop import train_and_evaluate

NAMES = [f"SOB_{c}-14-{case}-100-{n:03}.png" for c in ("B_A", "M_DC") for case in (101, 102, 103) for n in (1, 2)]
VICTIM = "SOB_B_A-14-101-100-001.png"


def pixels(dtype: type, channels: int) -> np.ndarray:
    shape = (23, 35, channels) if channels > 1 else (23, 35)
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def truncate(path: pathlib.Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


SPOILT: dict[str, tuple[Callable[[pathlib.Path], object], str]] = {
    "truncated": (truncate, "truncated PNG"),
    "text": (lambda path: path.write_text("not an image at all"), "not a PNG file"),
    "empty": (lambda path: path.write_bytes(b""), "empty file"),
    "16-bit": (lambda path: cv2.imwrite(str(path), pixels(np.uint16, 3)), "16-bit RGB PNG"),
    "grey": (lambda path: cv2.imwrite(str(path), pixels(np.uint8, 1)), "8-bit grey PNG"),
    "transparent": (lambda path: cv2.imwrite(str(path), pixels(np.uint8, 4)), "transparent pixels"),
    "unknown subtype": (lambda path: path.rename(path.with_name("SOB_B_XX-14-101-100-001.png")), "subtype 'XX'"),
    "misnamed": (lambda path: path.rename(path.with_name("holiday.png")), "not named like SOB_"),
}


def config_for(root: pathlib.Path, **data: object):
    config = get_config("smoke")
    config.data.root = str(root)
    config.data.update(data)
    return config


@pytest.mark.parametrize("kind", SPOILT)
def test_a_bad_image_is_listed_or_skipped_and_counted(
    kind: str, tmp_path: pathlib.Path, write_images: Callable[..., list[pathlib.Path]]
) -> None:
    root = tmp_path / "images"
    write_images(root, NAMES)
    spoil, reason = SPOILT[kind]
    spoil(root / VICTIM)
    with pytest.raises(DataError, match="1 bad image:") as caught:
        train_and_evaluate(config_for(root), tmp_path / "run")
    assert reason in str(caught.value)
    assert "on_bad_image=skip" in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()

    config = config_for(root, on_bad_image="skip")
    dataset = open_dataset(config.data)
    facts = dataset.facts(dataset.split(split_spec(config)))
    assert facts["n_bad_images_skipped"] == 1
    assert "1 bad images skipped" in facts["description"]
    assert len(dataset.records) == len(NAMES) - 1


@pytest.mark.parametrize(
    ("names", "data", "message"),
    [
        ([], {}, "no PNG images below this folder"),
        (NAMES, {"magnification": "400X"}, "no image of magnification 400X (found 100X: 12)"),
        (NAMES, {"magnification": "500X"}, "data.magnification='500X' is not one of"),
        ([n for n in NAMES if "_B_" in n], {}, "of one class (benign)"),
        (NAMES, {"task": "binari"}, "data.task='binari'"),
        (NAMES, {"sampling": "fair"}, "data.sampling='fair'"),
    ],
)
def test_a_dataset_that_cannot_be_used(
    names: list[str],
    data: dict[str, str],
    message: str,
    tmp_path: pathlib.Path,
    write_images: Callable[..., list[pathlib.Path]],
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    write_images(root, names)
    with pytest.raises((DataError, RunError)) as caught:
        train_and_evaluate(config_for(root, **data), tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())
