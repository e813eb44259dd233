"""Stain normalisation equals torchstain within a grey level; little tissue changes nothing."""

import importlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines import stain
from tests.conftest import SHARED
from tests.helpers.tissue_pictures import GLASS, tissue_texture

MACENKO = importlib.import_module("torchstain.numpy.normalizers.macenko").NumpyMacenkoNormalizer
REINHARD = importlib.import_module("torchstain.numpy.normalizers.reinhard").NumpyReinhardNormalizer


def pictures() -> list[np.ndarray]:
    """Two H&E-like pictures of different stains: a reference and another."""
    one, other = tissue_texture(160, 200, seed=0), tissue_texture(160, 200, seed=1)
    return [one, np.clip(255 * (other / 255.0) ** (0.7, 1.2, 0.9), 0, 255).astype(np.uint8)]


def real_tiles() -> list[np.ndarray]:
    folder = SHARED / "BreaKHis_200X_224"
    if not folder.is_dir():
        # Real images are not part of the repository; the planted pictures above are compared everywhere.
        pytest.skip(f"no real images in {folder}")
    files = sorted(folder.rglob("*.png"))[::60] or sorted(folder.rglob("*.jpg"))[::60]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def compare(method: str, reference: np.ndarray, image: np.ndarray) -> None:
    theirs = MACENKO() if method == stain.MACENKO else REINHARD()
    theirs.fit(reference)
    expected = theirs.normalize(image)
    expected = (expected[0] if method == stain.MACENKO else expected).astype(int)
    ours, _, _ = stain.fit(method, [reference])
    found, changed = ours.apply(image)
    assert changed
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("method", stain.METHODS)
def test_equal_to_torchstain(method: str) -> None:
    compare(method, *pictures())


@pytest.mark.parametrize("method", stain.METHODS)
def test_equal_to_torchstain_on_real_tiles(method: str) -> None:
    reference, *others = real_tiles()
    for image in others:
        compare(method, reference, image)


@pytest.mark.parametrize("method", stain.METHODS)
def test_little_tissue_is_left_alone(method: str) -> None:
    reference, image = pictures()
    glass = np.full_like(image, GLASS)
    glass[:10] = image[:10]  # 6 % of the picture
    normalizer, used, left_out = stain.fit(method, [reference, glass])
    assert (used, left_out) == (1, 1)
    found, changed = normalizer.apply(glass)
    assert not changed
    assert (found == glass).all()
    with pytest.raises(ValueError, match="none of the 1 images has 10% of tissue"):
        stain.fit(method, [glass])


def test_stains_that_were_planted_are_found() -> None:
    rng = np.random.default_rng(0)
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    amounts = rng.gamma(2.0, 0.25, (200, 200, 2)) * rng.integers(0, 2, (200, 200, 1)) + (0.02, 0.2)
    image = np.clip(stain.LIGHT * np.exp(-amounts @ vectors), 0, 255).astype(np.uint8)
    found = stain.find_stains(image)
    assert found is not None
    assert np.degrees(np.arccos((found.vectors * vectors).sum(1))) == pytest.approx([0, 0], abs=8)  # degrees


def test_one_colour_has_no_stains() -> None:
    flat = np.full((50, 50, 3), (150, 80, 140), np.uint8)
    assert stain.find_stains(flat) is None
    assert stain.find_colours(flat) is None


def test_targets_are_checked() -> None:
    with pytest.raises(ValueError, match="'vahadane' is not one of macenko, reinhard"):
        stain.StainNormalizer("vahadane", (0.0,) * 8)
    with pytest.raises(ValueError, match="needs 6 finite ones"):
        stain.StainNormalizer(stain.REINHARD, (0.0,) * 5)
