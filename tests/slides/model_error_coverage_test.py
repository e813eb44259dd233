"""How often the interval that holds the model's errors holds the true stroma percentage, on simulated slides."""

import json

import numpy as np
import pytest

from histojax.slides.geometry import Geometry
from histojax.slides.tsr import tsr
from histojax.slides.tsr.spec import TSRSpec
from tests.conftest import ROOT
from tests.helpers.tissue_fields import STROMA_CUT, TRUE_PERCENTAGE, field, table_of

GEOMETRY = Geometry(width=100_000, height=100_000, mpp=1.0, tile=100, stride=100)
ROWS, COLUMNS = 40, 50  # 20 blocks of 10 × 10 tiles
SLIDES = 200
TILES = 60  # of a validation source
PUBLISHED = json.loads((ROOT / "benchmarks" / "results" / "model_error_coverage.json").read_text())["rows"]


def rates(rng, mean, alike, n):
    """Rates of n sources, from a beta distribution with this mean and this correlation within a source."""
    spread = 1 / alike - 1
    return rng.beta(mean * spread, (1 - mean) * spread, n)


def coverage(sensitivity, specificity, alike, sources):
    """Percentages of slides: sampling interval holds the truth; corrected interval is given; and then holds it.

    Each slide, and each validation source, has sensitivities and specificities of its own.
    """
    rng = np.random.default_rng(0)
    sampled = given = held = 0
    for seed in range(SLIDES):
        stroma = field(rng, ROWS, COLUMNS, sigma=1) > STROMA_CUT
        other = field(rng, ROWS, COLUMNS, sigma=1) > 1.0  # 16 % of the tissue is neither
        carried, confusion = {}, {}
        for label, true in (("tumor", ~stroma & ~other), ("stroma", stroma & ~other)):
            se, sp = (rates(rng, mean, alike, sources + 1) for mean in (sensitivity, specificity))
            carried[label] = np.where(true, rng.random(true.shape) < se[-1], rng.random(true.shape) >= sp[-1])
            positive = rng.binomial(TILES, 0.4, sources)
            tp, tn = rng.binomial(positive, se[:-1]), rng.binomial(TILES - positive, sp[:-1])
            confusion[label] = np.stack([tn, TILES - positive - tn, positive - tp, tp], 1).tolist()
        spec = TSRSpec(
            thresholds={"tumor": 0.5, "stroma": 0.5}, policy="half", hot_spot_um=200.0, resamples=500, seed=seed
        )
        area = tsr.measure(table_of(**carried), GEOMETRY, spec, confusion=confusion)["areas"]["whole tissue"]
        figure, corrected = area["stroma_percentage"], area["corrected"]
        sampled += figure["low"] <= TRUE_PERCENTAGE <= figure["high"]
        if corrected["value"] is not None:
            given += 1
            held += corrected["low"] <= TRUE_PERCENTAGE <= corrected["high"]
    return 100 * float(sampled) / SLIDES, 100 * given / SLIDES, 100 * float(held) / max(given, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_coverage_is_as_published(name):
    row = PUBLISHED[name]
    figures = coverage(row["sensitivity"], row["specificity"], row["alike"], row["sources"])
    assert figures == pytest.approx((row["sampled"], row["given"], row["held"]), abs=1.5)


def test_the_interval_holds_the_truth_wherever_it_is_given():
    for row in PUBLISHED.values():
        assert row["held"] >= 90 or row["given"] < 5
