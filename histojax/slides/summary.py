"""A slide's results on one HTML page with embedded pictures, for the browser or for printing."""

import base64
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2

from histojax.core.files import atomic_write

_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}
_AREAS = ("region", "whole tissue", "hot spot")  # most informative first
# Key in tsr.json: title on the page, unit, decimals.
FIGURES = {
    "stroma_percentage": ("Stroma percentage", " %", 1),
    "tumor_percentage": ("Tumor percentage", " %", 1),
    "tsr": ("Tumor-to-stroma ratio (TSR)", "", 2),
}


def write(
    path: str | os.PathLike[str], facts: Mapping[str, Any], pictures: Mapping[str, str | os.PathLike[str]]
) -> None:
    """Write the page of `render` atomically."""
    page = render(facts, pictures)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")


def render(facts: Mapping[str, Any], pictures: Mapping[str, str | os.PathLike[str]]) -> str:
    """Render one self-contained HTML page; all inserted text is escaped.

    Args:
      facts: `slide` (name, path, width, height, mpp, mpp_source, reader), `model` (name, checkpoint, step, training
        data and protocol, labels, thresholds by label or None, tile_um), `tissue` (mm² by kind), `tiles` (number),
        `tsr` (the result of `tsr.measure`, or None) and `warnings` (sentences).
      pictures: caption to PNG or JPEG file; the first one is shown large.

    Raises:
      KeyError, jinja2.UndefinedError: a fact is missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    areas = ordered_areas(facts["tsr"])
    return environment.get_template("summary.html.jinja").render(
        **facts,
        areas=areas,
        notes=notes(areas),
        figures=FIGURES,
        pictures={caption: _inline(pathlib.Path(path)) for caption, path in pictures.items()},
    )


def ordered_areas(measured: Mapping[str, Any] | None) -> dict[str, Any]:
    """The areas of `tsr.json` by name, the most informative first; none without one."""
    areas = measured["areas"] if measured else {}
    return {name: areas[name] for name in _AREAS if name in areas}


def notes(areas: Mapping[str, Any]) -> list[str]:
    """Notes on the figures and reasons for missing figures or intervals, without repetition."""
    out = []
    for name, area in areas.items():
        if area["status"] == "evaluated":
            out += [f"{name}: {note}" for note in area["notes"]]
            out += [f"{name}: {reason}" for key in FIGURES if (reason := area[key]["reason"])]
    return list(dict.fromkeys(out))


def _inline(path: pathlib.Path) -> str:
    """An image file as a data URL."""
    return f"data:{_MEDIA_TYPES[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _figure(figure: Mapping[str, Any], unit: str, decimals: int) -> str:
    """A figure with its interval, for the page."""
    if figure["value"] is None or figure["low"] is figure["high"] is None:
        return _value(figure, unit, decimals)
    return f"{_value(figure, unit, decimals)} ({_ends(figure, decimals)})"


def _value(figure: Mapping[str, Any], unit: str, decimals: int) -> str:
    """A figure without its interval."""
    return "–" if figure["value"] is None else f"{figure['value']:.{decimals}f}{unit}"


def _ends(figure: Mapping[str, Any], decimals: int) -> str:
    """The ends of a figure's interval; at least one of them is known."""
    ends = (figure["low"], figure["high"])
    return " to ".join("unbounded" if end is None else f"{end:.{decimals}f}" for end in ends)


def _mm2(area: float) -> str:
    """An area in mm² with three significant digits and at most four decimals."""
    if not area:
        return "0"
    return f"{area:.{min(4, max(0, 2 - math.floor(math.log10(area))))}f}"


FILTERS = {"figure": _figure, "value": _value, "ends": _ends, "mm2": _mm2}  # of the templates
