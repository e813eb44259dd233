"""The synthetic slide: reproducible pixels, glass around the tissue, and fractions that match what is drawn."""

import pathlib

import cv2
import numpy as np
import pytest

from data_pipelines.liver_tiles.spec import LIVER_LABELS
from data_pipelines.synthetic import stain, tiles
from data_pipelines.synthetic.slide import SlideSyntheticSpec, draw_slide, write_slide

SMALL = SlideSyntheticSpec(rows=3, columns=3)


def test_the_same_spec_gives_the_same_slide(tmp_path: pathlib.Path) -> None:
    fractions = write_slide(tmp_path / "slide.png", SMALL)
    pixels, again = draw_slide(SMALL)
    assert fractions == again
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "slide.png"))[..., ::-1], pixels)
    assert pixels.shape == (3 * 112, 3 * 112, 3)
    # Glass around the tissue.
    assert np.concatenate([pixels[:50].reshape(-1, 3), pixels[:, :50].reshape(-1, 3)]).min() > 200
    assert pixels[130:-130, 130:-130].mean() < 200


def test_the_fractions_are_those_of_the_drawn_tissue(monkeypatch: pytest.MonkeyPatch) -> None:
    def label_colours(rng: np.random.Generator, look: stain.Look, shares: np.ndarray) -> np.ndarray:
        assert shares.shape == (4, 112, 112)
        np.testing.assert_allclose(shares.sum(0), 1)
        return np.repeat(shares.argmax(0)[..., None].astype(np.uint8), 3, axis=2)

    monkeypatch.setattr(tiles, "draw", label_colours)
    pixels, fractions = draw_slide(SlideSyntheticSpec(rows=5, columns=6))
    other, _ = draw_slide(SlideSyntheticSpec(seed=1, rows=5, columns=6))
    assert (other != pixels).mean() > 0.2
    drawn = pixels[..., 0][pixels[..., 0] < 4]
    assert list(fractions) == list(LIVER_LABELS)
    assert sum(fractions.values()) == pytest.approx(1)
    # Borders are soft, and a pixel is drawn in the colour of its largest share.
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / drawn.size, list(fractions.values()), atol=0.01)


@pytest.mark.parametrize("fields", [{"seed": -1}, {"rows": 2}, {"columns": 101}])
def test_an_illegal_field_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(fields))}.* is .*must"):
        SlideSyntheticSpec(**fields)
