"""What a slide's page draws over the slide: labels and probabilities of tiles, and outlines; as JSON."""

import base64
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from histojax.evaluation.report.html_templates import printable
from histojax.slides import pictures
from histojax.slides.annotations import regions
from histojax.slides.geometry import Geometry
from histojax.slides.grid import stride_of
from histojax.slides.labels import PREFIX, carried_labels, label_colours, label_names

_STEPS = 10_000  # steps of a probability: four digits


def tile_layers(record: Mapping[str, Any], measured: Mapping[str, Any] | None, table: pd.DataFrame) -> dict[str, Any]:
    """Describe the tiles of a slide for its page.

    Args:
      record: content of `slide.json`.
      measured: content of `tsr.json`; None without one.
      table: the tile table.

    Returns:
      `labels` (name, colour, threshold), `grid` (lengths in level-0 pixels), `thresholds_known`, `heat` (256 colours of
      probabilities), and `tiles`: little-endian arrays in base64, one value per tile, those of labels label by label.
    """
    names, facts = label_names(table), record["facts"]
    known, thresholds = _thresholds(record, measured)
    carried = carried_labels(table, thresholds) if known and len(table) else np.zeros((len(table), len(names)), bool)
    colours = label_colours(names)
    probabilities = table[[PREFIX + name for name in names]].to_numpy(np.float64)
    heat = matplotlib.colormaps[pictures.HEAT_COLOURS](np.arange(256), bytes=True)[:, :3]
    return {
        "labels": [
            {"name": printable(name), "colour": colours[name], "threshold": (thresholds or {}).get(name)}
            for name in names
        ],
        "thresholds_known": known,
        "grid": _grid(table, facts, record["settings"]["overlap"]),
        "heat": _base64(heat.astype(np.uint8)),
        "tiles": {
            "count": len(table),
            "row": _base64(table["row"].to_numpy().astype("<u4")),
            "column": _base64(table["column"].to_numpy().astype("<u4")),
            "probability": _base64(np.rint(probabilities.T * _STEPS).astype("<u2")),
            "carried": _base64(carried.T.astype(np.uint8)),
        },
    }


def outlines(record: Mapping[str, Any], measured: Mapping[str, Any] | None) -> tuple[list[dict[str, Any]], list[str]]:
    """The region of interest and the hot spot, in the colours of the overlay.

    Returns:
      Outlines (name, colour, rings of level-0 pixels), and warnings about what cannot be shown.
    """
    shapes: dict[str, Any] = {}
    warnings = []
    if record.get("roi"):
        try:
            if hashlib.sha256(pathlib.Path(record["roi"]).read_bytes()).hexdigest()[:16] != record["settings"]["roi"]:
                raise regions.RegionError(f"{record['roi']} has changed since the analysis")
            annotated, _ = regions.read(record["roi"])
            clipped, _ = regions.clip(annotated, record["facts"]["width"], record["facts"]["height"], record["roi"])
            shapes["region of interest"] = regions.union(clipped)
        except (regions.RegionError, OSError) as error:
            warnings.append(f"the region of interest is not shown: {error}")
    if box := (measured or {"areas": {}})["areas"].get("hot spot", {}).get("box"):
        right, bottom = box["minx"] + box["width"], box["miny"] + box["height"]
        shapes["hot spot"] = shapely.box(box["minx"], box["miny"], right, bottom)
    found = [
        {"name": name, "colour": pictures.OUTLINES[number % len(pictures.OUTLINES)], "rings": _rings(shape)}
        for number, (name, shape) in enumerate(shapes.items())
    ]
    return found, warnings


def _thresholds(
    record: Mapping[str, Any], measured: Mapping[str, Any] | None
) -> tuple[bool, Mapping[str, float] | None]:
    """Whether it is known which labels tiles carry, and the thresholds; None for exclusive classes."""
    if "thresholds" in record:
        return True, record["thresholds"]
    if measured is not None:  # of an earlier version, which did not record them for other models
        return True, measured["settings"]["thresholds"] or None
    return False, None


def _grid(table: pd.DataFrame, facts: Mapping[str, Any], overlap: float) -> dict[str, Any]:
    tile = int(table["width"].iloc[0]) if len(table) else 1
    stretch = facts["mpp_y"] / facts["mpp"]
    geometry = Geometry(facts["width"], facts["height"], facts["mpp"], tile, stride_of(tile, overlap), stretch)
    return {
        "tile": tile,
        "tileHeight": geometry.tile_height,
        "stride": geometry.stride,
        "strideHeight": geometry.stride_height,
        "left": geometry.offset[0],
        "top": geometry.offset[1],
    }


def _rings(shape: Any) -> list[list[list[int]]]:
    """The rings of a polygon or several, in whole pixels."""
    lines = shapely.get_parts(shapely.boundary(shape))
    return [np.rint(shapely.get_coordinates(line)).astype(int).tolist() for line in lines]


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
