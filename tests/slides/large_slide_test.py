"""A slide of 50,000 × 50,000 pixels is cut into tiles within 3 GiB of memory."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.helpers.slide_files import write_large

_PROGRAM = """
import json, sys
from histojax.cli.bench.worker import memory_peak  # getrusage would tell the parent's, if that was larger
from histojax.slides.grid import GridSpec, make_grid, read_tiles
from histojax.slides.readers.reader import open_slide
from histojax.slides.tissue import TissueSpec, find_tissue

with open_slide(sys.argv[1]) as slide:
    tissue = find_tissue(slide, TissueSpec())
    geometry, table = make_grid(slide, tissue, GridSpec(224, 0.5))
    tiles = sum(len(batch) for batch in read_tiles(slide, table, 224, 64, 2))
    areas = tissue.mm2(slide.pixel_mm2)
    peak = memory_peak()
    print(json.dumps({"width": slide.width, "mm2": areas, "table": len(table), "tiles": tiles, "bytes": peak}))
"""


def test_a_large_slide_needs_little_memory(tmp_path: pathlib.Path) -> None:
    path = write_large(tmp_path / "large.tif")
    assert path.stat().st_size < 150 << 20
    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM, path], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["width"] == 50_000
    assert found["mm2"]["tissue"] == pytest.approx((8192 * 0.25 / 1000) ** 2, rel=0.02)
    assert found["tiles"] == found["table"] > 300
    assert found["bytes"] < 3 << 30
