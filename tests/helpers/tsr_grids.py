"""Tile tables drawn with characters, for tests of the tumor-to-stroma ratio."""

import numpy as np
import pandas as pd

from histojax.slides.geometry import Geometry
from histojax.slides.tsr import tsr
from histojax.slides.tsr.spec import TSRSpec

# Tiles of 400 pixels with a stride of 200 at 0.5 µm/px: a cell is 0.1 mm wide and has 0.01 mm².
GEOMETRY = Geometry(width=10_000, height=10_000, mpp=0.5, tile=400, stride=200)
THRESHOLDS = {"tumor": 0.5, "stroma": 0.5, "necrosis": 0.5}
# Probabilities of tumor, stroma and necrosis in each kind of tile.
KINDS = {
    "T": (0.9, 0.1, 0.1),
    "S": (0.1, 0.9, 0.1),
    "B": (0.6, 0.9, 0.1),  # both, divided 0.4 to tumor and 0.6 to stroma
    "N": (0.1, 0.1, 0.9),
    ".": (0.1, 0.1, 0.1),
}


def make_table(*lines, row=0, column=0):
    """A table from lines of KINDS, one character per tile; a blank has no tissue."""
    at = [(r, c, kind) for r, line in enumerate(lines) for c, kind in enumerate(line) if kind != " "]
    out = pd.DataFrame([(r + row, c + column) for r, c, _ in at], columns=["row", "column"])
    out["tissue"] = 1.0
    for i, label in enumerate(THRESHOLDS):
        out[f"prob_{label}"] = [KINDS[kind][i] for _, _, kind in at]
    return out


def make_spec(**changes):
    return TSRSpec(**{"thresholds": THRESHOLDS, "min_tumor_mm2": 0.0, "min_tissue_mm2": 0.0, "resamples": 50} | changes)


def random_table(rows=30, columns=40, seed=0, kinds="TTSSB."):
    rng = np.random.default_rng(seed)
    return make_table(*("".join(rng.choice(list(kinds), columns)) for _ in range(rows)))


def measure_whole(table, confusion=None, geometry=GEOMETRY, **changes):
    return tsr.measure(table, geometry, make_spec(**changes), confusion=confusion)["areas"]["whole tissue"]


def value(area, name="stroma_percentage"):
    return area[name]["value"]
