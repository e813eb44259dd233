"""A small cohort as `histojax slide` writes it, with a slide of every status, a region, and a name of markup."""

import json
import pathlib

import numpy as np
import pytest
import shapely
import tifffile

from histojax.slides import cohort, cohort_jobs
from histojax.slides.tsr.spec import TSRSpec
from tests.helpers import planted
from tests.helpers.colour_slide_model import SMALL, coarse_pictures, model

EVIL = "<img src=x onerror=alert(1)>"
EVIL_KEY = "_img_src_x_onerror_alert_1_"
KEYS = {EVIL: EVIL_KEY, "a": "a", "b": "b", "glass": "glass", "lost": "lost"}


def write(folder: pathlib.Path, tsr: TSRSpec | None = SMALL) -> pathlib.Path:
    """Write slides and their results; return the folder of the results.

    `a` has 25 % of stroma; `b` has an island of it, and a region of interest, its left half;
    `glass` has no tissue, the slide of `lost` is deleted, and that of `broken` cannot be read.
    """
    slides = folder / "slides"
    slides.mkdir()
    box = shapely.box(110, 80, 612, 820)
    (slides / "b.geojson").write_text(
        json.dumps({"type": "Feature", "geometry": shapely.geometry.mapping(box), "properties": {}})
    )
    jobs = [cohort_jobs.Job("a", planted.write_slide(slides / "a.tif", 0.25, 1))]
    jobs.append(cohort_jobs.Job("b", _write_island(slides / "b.tif"), roi=slides / "b.geojson"))
    jobs.append(cohort_jobs.Job(EVIL, planted.write_slide(slides / "c.tif", 0.5, 3)))
    glass = np.full((300, 400, 3), 244, np.uint8)
    tifffile.imwrite(slides / "glass.tif", glass, photometric="rgb", resolution=(2e4, 2e4), resolutionunit="CENTIMETER")
    jobs.append(cohort_jobs.Job("glass", slides / "glass.tif"))
    jobs.append(cohort_jobs.Job("lost", planted.write_slide(slides / "lost.tif", 0.4, 4)))
    (slides / "broken.svs").write_text("no slide")
    jobs.append(cohort_jobs.Job("broken", slides / "broken.svs"))
    output = folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        coarse_pictures(patch)
        assert cohort.run(jobs, model(), cohort.Settings(tsr=tsr), output) == 1
    (slides / "lost.tif").unlink()
    return output


def _write_island(path: pathlib.Path) -> pathlib.Path:
    """Write a slide of tumor with stroma in the middle of its left half, where the hot spot is."""
    rng = np.random.default_rng(2)
    pixels = np.full((900, 1200, 3), 244, np.uint8)
    pixels[90:810, 120:1080] = planted.tissue(720, 960, 960, rng)
    pixels[300:600, 220:520] = planted.tissue(300, 300, 0, rng)
    tags = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", compression="zlib", **tags)
    return path
