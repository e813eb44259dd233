"""Coverage of the interval of a slide's stroma percentage, on simulated tissue."""

import numpy as np
import pytest

from histojax.slides.geometry import Geometry
from histojax.slides.tsr import tsr
from histojax.slides.tsr.spec import TSRSpec
from tests.helpers.tissue_fields import STROMA_CUT, TRUE_PERCENTAGE, field, table_of

pytestmark = pytest.mark.slow
GEOMETRY = Geometry(width=100_000, height=100_000, mpp=1.0, tile=100, stride=100)
SLIDES = 600


def coverage(rows, columns, sigma):
    """Fraction of slides whose interval contains the true value: over blocks of 10 × 10 tiles, and over tiles.

    The latter uses the normal limit of a bootstrap over thousands of tiles.
    """
    rng = np.random.default_rng(0)
    over_blocks = over_tiles = 0
    for seed in range(SLIDES):
        stroma = field(rng, rows, columns, sigma) > STROMA_CUT
        table = table_of(~stroma, stroma)
        # A field of two tiles is too small for a hot spot, which skips the search.
        spec = TSRSpec(block_um=1000.0, hot_spot_um=200.0, resamples=600, seed=seed)
        figure = tsr.measure(table, GEOMETRY, spec)["areas"]["whole tissue"]["stroma_percentage"]
        over_blocks += figure["low"] <= TRUE_PERCENTAGE <= figure["high"]
        share = figure["value"] / 100
        over_tiles += abs(figure["value"] - TRUE_PERCENTAGE) <= 196 * np.sqrt(share * (1 - share) / len(table))
    return over_blocks / SLIDES, over_tiles / SLIDES


@pytest.mark.parametrize(
    ("rows", "columns", "blocks", "tiles"),
    [(30, 30, 0.93, 0.50), (40, 50, 0.93, 0.51), (80, 80, 0.92, 0.50)],  # 9, 20 and 64 blocks
)
def test_blocks_wider_than_the_structures_have_nominal_coverage(rows, columns, blocks, tiles):
    over_blocks, over_tiles = coverage(rows, columns, sigma=1)
    assert 0.88 <= over_blocks <= 0.99
    assert over_tiles < 0.6
    # Expected values are from 3,000 slides; nominal coverage is 0.95.
    assert (over_blocks, over_tiles) == pytest.approx((blocks, tiles), abs=0.04)


def test_the_fewest_blocks_cover_less():
    over_blocks, over_tiles = coverage(20, 20, sigma=1)
    # 4 blocks cover 0.85; plain percentiles would cover 0.78.
    assert 0.82 <= over_blocks <= 0.9
    assert over_tiles < 0.6


def test_wider_structures_lower_the_coverage_but_less_than_with_tiles():
    over_blocks, over_tiles = coverage(40, 50, sigma=3)
    # Lobes of 12 tiles in blocks of 10 are covered at 0.84, and at 0.18 over tiles.
    assert 0.8 <= over_blocks <= 0.9
    assert over_tiles < 0.3
