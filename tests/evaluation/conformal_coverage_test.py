"""How often prediction sets hold the truth for new patients, on simulated tables whose images are alike by patient."""

import json

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from histojax.evaluation import conformal
from tests.conftest import ROOT

TABLES = 2000
LEVEL = 0.9
MOST_IMAGES = 20  # of a patient, who has at least two
PUBLISHED = json.loads((ROOT / "benchmarks" / "results" / "prediction_set_coverage.json").read_text())["rows"]
HARDER = 1.0  # standard deviations by which the rarer class is harder


def image_level(of_truth):
    """The usual split conformal limit: images are taken for exchangeable, whatever their patients."""
    rank = min(int(np.ceil((len(of_truth) + 1) * LEVEL - 1e-9)), len(of_truth))
    return np.sort(of_truth)[-rank]


def coverage(patients, alike, sizes, rarer=0.0):
    """Percentages of new patients' images whose set holds the truth: by image, by patient, and 90 % of the latter

    With `rarer`, the fraction of patients of a rarer and harder class, only that class counts: sets by patient over all
    classes together, and in each class.

    How hard an image is has a normal distribution; `alike` is the correlation within a patient, and `sizes` that
    of a patient's difficulty and number of images. The model gives the truth the probability that it is harder.
    """
    rng = np.random.default_rng(0)
    hard = rng.normal(size=(TABLES, patients))
    count = ndtr(sizes * hard + np.sqrt(1 - sizes**2) * rng.normal(size=hard.shape)) * (MOST_IMAGES - 1)
    exists = np.arange(MOST_IMAGES) < 2 + count[:, :, None].astype(int)
    is_rare = np.arange(patients) < round(rarer * patients)
    difficulty = np.sqrt(alike) * hard[:, :, None] + np.sqrt(1 - alike) * rng.normal(size=exists.shape)
    of_truth = ndtr(-difficulty - HARDER * is_rare[:, None])
    limits = np.empty((TABLES, 2))
    for table in range(TABLES):
        unit, image = np.nonzero(exists[table])
        scores, rare = of_truth[table, unit, image], is_rare[unit]
        both = conformal.least_probability(scores, unit, LEVEL)
        if rarer:
            limits[table] = both, conformal.least_probability(scores[rare], unit[rare], LEVEL)
        else:
            limits[table] = image_level(scores), both
    # A random image of a new patient is as hard as a standard normal number, plus HARDER in the rarer class.
    held = 100 * ndtr(-ndtri(limits) - (HARDER if rarer else 0.0))
    return [*held.mean(0).tolist(), *np.quantile(held[:, 1], [0.05, 0.95]).tolist()]


@pytest.mark.parametrize("name", PUBLISHED)
def test_coverage_is_as_published(name):
    row = PUBLISHED[name]
    figures = coverage(row["patients"], row["alike"], row["sizes"], row.get("rarer", 0.0))
    assert figures == pytest.approx([row[key] for key in ("other", "by_patient", "low", "high")], abs=0.2)


def test_sets_by_patient_keep_their_level_where_others_do_not():
    for name, row in PUBLISHED.items():
        patients = row["patients"] * row.get("rarer", 1.0)
        rounded_up = 100 * np.ceil((patients + 1) * LEVEL - 1e-9) / (patients + 1)  # of one image per patient
        assert 88 <= row["by_patient"] <= rounded_up + 2, name
    assert min(row["other"] for row in PUBLISHED.values()) < 80
