"""How often the interval of a slide's stroma percentage holds the truth, on simulated tissue."""

import numpy as np
import pandas as pd
import pytest
import scipy.ndimage
import scipy.stats

from histojax.slides.geometry import Geometry
from histojax.slides.tsr import tsr
from histojax.slides.tsr.spec import TSRSpec

GEOMETRY = Geometry(width=100_000, height=100_000, mpp=1.0, tile=100, stride=100)
CUT = 0.3  # of a standard normal field: stroma above it
TRUTH = 100 * scipy.stats.norm.sf(CUT)  # 38.2 %
SLIDES = 600


def tissue(rng, rows, columns, sigma):
    """Tumor and stroma of a Gaussian field smoothed by `sigma` tiles: lobes about 4·sigma tiles wide."""
    pad = 5 * sigma
    noise = rng.standard_normal((rows + 2 * pad, columns + 2 * pad))
    field = scipy.ndimage.gaussian_filter(noise, sigma)[pad:-pad, pad:-pad] * 2 * np.sqrt(np.pi) * sigma
    stroma = (field > CUT).ravel().astype(float)
    row, column = np.divmod(np.arange(rows * columns), columns)
    return pd.DataFrame({"row": row, "column": column, "prob_tumor": 1 - stroma, "prob_stroma": stroma})


def coverage(rows, columns, sigma):
    """Share of simulated slides whose interval holds the truth: over blocks of 10 × 10 tiles, and over tiles.

    The latter is what a bootstrap over tiles would give of thousands of tiles, by its normal limit.
    """
    rng = np.random.default_rng(0)
    over_blocks = over_tiles = 0
    for seed in range(SLIDES):
        table = tissue(rng, rows, columns, sigma)
        # A field of two tiles is no hot spot: none is searched.
        spec = TSRSpec(block_um=1000.0, hot_spot_um=200.0, resamples=600, seed=seed)
        figure = tsr.measure(table, GEOMETRY, spec)["areas"]["whole tissue"]["stroma_percentage"]
        over_blocks += figure["low"] <= TRUTH <= figure["high"]
        share = figure["value"] / 100
        over_tiles += abs(figure["value"] - TRUTH) <= 196 * np.sqrt(share * (1 - share) / len(table))
    return over_blocks / SLIDES, over_tiles / SLIDES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "columns", "blocks", "tiles"),
    [(30, 30, 0.93, 0.50), (40, 50, 0.93, 0.51), (80, 80, 0.92, 0.50)],  # 9, 20 and 64 blocks
)
def test_blocks_wider_than_the_structures_cover_what_they_say(rows, columns, blocks, tiles):
    over_blocks, over_tiles = coverage(rows, columns, sigma=1)
    assert 0.88 <= over_blocks <= 0.99
    assert over_tiles < 0.6
    # Of 3,000 slides; nominal is 0.95.
    assert (over_blocks, over_tiles) == pytest.approx((blocks, tiles), abs=0.04)


@pytest.mark.slow
def test_the_fewest_blocks_cover_less():
    over_blocks, over_tiles = coverage(20, 20, sigma=1)
    # 4 blocks: 0.85; plain percentiles cover 0.78.
    assert 0.82 <= over_blocks <= 0.9
    assert over_tiles < 0.6


@pytest.mark.slow
def test_structures_wider_than_the_blocks_are_covered_less_and_better_than_by_tiles():
    over_blocks, over_tiles = coverage(40, 50, sigma=3)
    # Lobes of 12 tiles in blocks of 10: 0.84, and 0.18 over tiles.
    assert 0.8 <= over_blocks <= 0.9
    assert over_tiles < 0.3
