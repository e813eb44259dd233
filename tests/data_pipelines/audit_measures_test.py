"""Measures of one image in an audit, and when it counts as blank, pen-marked, blurred or an outlier."""

import pathlib

import cv2
import numpy as np
import pytest

from data_pipelines.audit.measures import Measures, measure, robust_z, stands_apart, thumbnail
from data_pipelines.images import check_image, decode_rgb
from tests.conftest import SHARED


def _measure(path: pathlib.Path) -> Measures:
    found = measure(path)
    assert isinstance(found, Measures)
    return found


def _written(path: pathlib.Path, bgr: np.ndarray) -> Measures:
    cv2.imwrite(str(path), bgr)
    return _measure(path)


def test_real_images_are_neither_blank_nor_inked_nor_blurred(breakhis_part: pathlib.Path) -> None:
    paths = [
        *sorted(breakhis_part.rglob("*.png"))[::3],
        *sorted((SHARED / "wsss4luad_part" / "img").glob("*.png"))[::2],
    ]
    wrong = [p.name for p in paths if (m := _measure(p)).blank or m.pen or m.blurred]
    assert len(paths) > 80
    assert wrong == []


def test_blurred_inked_and_blank_images_are_detected(breakhis_part: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for i, path in enumerate(sorted(breakhis_part.rglob("*.png"))[::40]):
        image = cv2.imread(str(path))
        blurred = _written(tmp_path / f"blurred{i}.png", cv2.GaussianBlur(image, (0, 0), 1.5))
        assert blurred.blurred
        for colour in ((150, 50, 20), (40, 110, 20), (25, 25, 25), (30, 20, 190)):  # blue, green, black, red; BGR
            inked = cv2.line(image.copy(), (50, 60), (600, 400), colour, 30)
            assert _written(tmp_path / "inked.png", inked).pen, (path.name, colour)
    for level in (0, 128, 250):
        noise = np.random.default_rng(level).integers(-3, 4, (120, 160, 3))
        blank = _written(tmp_path / "blank.png", np.clip(level + noise, 0, 255).astype(np.uint8))
        assert blank.blank
        assert not blank.blurred


def test_colour_size_and_hash(tmp_path: pathlib.Path) -> None:
    flat = np.full((30, 50, 3), (119, 119, 119), np.uint8)
    flat[:, 25:] = (0, 0, 255)  # red, BGR
    found = _written(tmp_path / "a.png", flat)
    assert (found.height, found.width, found.mode) == (30, 50, "PNG RGB")
    assert found.pixel_hash == check_image((tmp_path / "a.png").read_bytes()).pixel_hash
    # CIE: grey 119 is L* 50.03; sRGB red is 53.24, 80.09, 67.20.
    np.testing.assert_allclose(
        [found.lightness, found.red_green, found.yellow_blue], [(50.03 + 53.24) / 2, 80.09 / 2, 67.20 / 2], atol=0.1
    )
    np.testing.assert_allclose(found.lightness_sd, (53.24 - 50.03) / 2, atol=0.1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"\x89PNG\r\n\x1a\nxyz", "truncated PNG"),
        (b"GIF89a", "not a PNG"),
        (b"\xff\xd8\xff", "damaged"),
    ],
)
def test_unreadable_file_has_a_reason(tmp_path: pathlib.Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(data)
    found = measure(tmp_path / "a.png")
    assert isinstance(found, str)
    assert reason in found
    assert measure(tmp_path / "none.png") == "unreadable: No such file or directory"


def test_robust_z_by_hand() -> None:
    values = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 100.0, 5])
    # Median 5; deviations 4 3 2 1 0 1 2 3 4 95 0: their median 2.
    z = robust_z(values)
    np.testing.assert_allclose(z[[4, 9]], [0, 95 / (1.4826 * 2)])
    assert stands_apart(z).tolist() == [False] * 9 + [True, False]
    assert not robust_z(values[2:]).any()  # nine are too few
    assert not robust_z(np.array([1.0] * 6 + [50.0] * 5)).any()  # no spread


def test_thumbnail_keeps_the_aspect_ratio(breakhis_part: pathlib.Path) -> None:
    data = thumbnail(decode_rgb(next(breakhis_part.rglob("*.png")).read_bytes()), 200)
    height, width, _ = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape
    assert (width, height) in {(175, 114), (175, 115)}
