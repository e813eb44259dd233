"""The perceptual hash: it finds copies, separates different real images, and misses no pair."""

import pathlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from data_pipelines.audit import hashes
from data_pipelines.audit.hashes import VIEWS, grey_of, hash_views, near_pairs, see
from tests.conftest import SHARED


@pytest.fixture(scope="module")
def real_images(breakhis_part: pathlib.Path) -> list[np.ndarray]:
    """All real images, in RGB."""
    paths = [*sorted(breakhis_part.rglob("*.png")), *sorted((SHARED / "wsss4luad_part" / "img").glob("*.png"))]
    return [np.ascontiguousarray(cv2.imread(str(path))[..., ::-1]) for path in paths]


@pytest.fixture(scope="module")
def real_greys(real_images: list[np.ndarray]) -> np.ndarray:
    return np.stack([grey_of(rgb) for rgb in real_images])


def _jpeg(rgb: np.ndarray, quality: int) -> np.ndarray:
    _, data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def test_eight_views_are_the_flips_and_quarter_turns() -> None:
    grey = np.arange(12).reshape(3, 4)
    named = {
        "not turned": grey,
        "mirrored left to right": np.fliplr(grey),
        "mirrored top to bottom": np.flipud(grey),
        "turned by 180°": np.rot90(grey, 2),
        "mirrored on the diagonal": grey.T,
        "turned by 90° clockwise": np.rot90(grey, -1),
        "turned by 90° counterclockwise": np.rot90(grey, 1),
        "mirrored on the other diagonal": np.rot90(grey, 2).T,
    }
    assert tuple(named) == VIEWS
    for view, expected in enumerate(named.values()):
        np.testing.assert_array_equal(see(grey, view), expected)


def test_hashes_of_views_equal_those_of_the_turned_image(real_greys: np.ndarray) -> None:
    for grey in real_greys[::20]:
        for view, ours in enumerate(hash_views(grey)):
            theirs = hash_views(np.ascontiguousarray(see(grey, view)))[0]
            assert np.bitwise_count(ours ^ theirs).sum() <= 1  # a coefficient near zero may change its sign


def test_hash_has_255_bits_without_the_mean(real_greys: np.ndarray) -> None:
    brighter = (real_greys[0] // 2 + 100).astype(np.uint8)
    assert np.bitwise_count(hash_views(real_greys[0])[0] ^ hash_views(brighter)[0]).sum() <= 3
    assert np.bitwise_count(hash_views(real_greys[0])[0] ^ hash_views(255 - real_greys[0])[0]).sum() == 255


def test_no_two_real_images_are_taken_for_copies(real_greys: np.ndarray) -> None:
    assert len(real_greys) > 250
    assert near_pairs(real_greys, len(real_greys), max_distance=64) == []
    # The hash alone separates them at twice the tolerance, without the comparison of pixels.
    views = np.stack([hash_views(grey) for grey in real_greys])
    assert list(hashes._candidates(views, len(views), 2 * hashes.MAX_DISTANCE)) == []


@pytest.mark.parametrize(
    ("edit", "distance"),
    [
        (lambda rgb: rgb, 1),
        (lambda rgb: _jpeg(rgb, 90), 8),
        (lambda rgb: _jpeg(rgb, 50), 12),
        (lambda rgb: _jpeg(cv2.resize(rgb, (224, 224), interpolation=cv2.INTER_AREA), 90), 12),
        (lambda rgb: (255 * (rgb / 255) ** 1.4).astype(np.uint8), 20),
    ],
    ids=["turned", "JPEG 90", "JPEG 50", "224 pixels, JPEG 90", "gamma 1.4"],
)
def test_copies_of_real_images_are_found_in_every_view(
    real_images: list[np.ndarray],
    real_greys: np.ndarray,
    edit: Callable[[np.ndarray], np.ndarray],
    distance: int,
) -> None:
    views = [i % 8 for i in range(len(real_images))]  # about thirty images per view
    copies = np.stack([grey_of(edit(_seen(rgb, view))) for rgb, view in zip(real_images, views, strict=True)])
    found = near_pairs(np.concatenate([real_greys, copies]), len(real_greys))
    assert [(pair.first, pair.second, pair.view) for pair in found] == [
        (i, len(real_greys) + i, view) for i, view in enumerate(views)
    ]
    assert max(pair.distance for pair in found) <= distance
    assert min(pair.correlation for pair in found) > 0.98


def _seen(rgb: np.ndarray, view: int) -> np.ndarray:
    return np.ascontiguousarray(np.stack([see(channel, view) for channel in np.moveaxis(rgb, -1, 0)], axis=-1))


def test_nearly_blank_images_are_distinguished_by_their_pixels() -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for size in (6, 18):  # tissue in the same corner, in one three times as wide: the coarsest waves look alike
        picture = np.full((64, 64), 240, np.uint8)
        picture[:size, :size] = rng.integers(60, 160, (size, size))
        pictures.append(picture)
    views = np.stack([hash_views(picture) for picture in pictures])
    assert near_pairs(np.stack(pictures), 2, max_distance=255) == []
    assert list(hashes._candidates(views, 2, 255)) == [(0, 1)]


def test_no_pair_between_blocks_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    views = np.random.default_rng(0).integers(0, 2**63, (60, 8, 4), dtype=np.uint64)
    brute = {
        (i, j): min(int(np.bitwise_count(views[i, k] ^ views[j, 0]).sum()) for k in range(8))
        for i in range(60)
        for j in range(i + 1, 60)
    }
    for rows in (7, 60, 100):
        monkeypatch.setattr(hashes, "_BLOCK", 60 * rows)
        for n_own, most in ((60, 115), (11, 115), (60, 104), (11, 0)):
            expected = {pair for pair, distance in brute.items() if distance <= most and pair[0] < n_own}
            assert set(hashes._candidates(views, n_own, most)) == expected
            assert (len(expected) > 100) == (most == 115)
