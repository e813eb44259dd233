"""A slide's results on one page: summary.html, with its pictures inside, to be read in a browser or printed."""

import base64
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2

from histojax.core.files import atomic_write

_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}
_AREAS = ("region", "whole tissue", "hot spot")  # the most telling first
# Name in tsr.json -> what the page calls it, its unit, decimals.
_FIGURES = {
    "stroma_percentage": ("Stroma percentage", " %", 1),
    "tumor_percentage": ("Tumor percentage", " %", 1),
    "tsr": ("Tumor-to-stroma ratio (TSR)", "", 2),
}


def write(
    path: str | os.PathLike[str], facts: Mapping[str, Any], pictures: Mapping[str, str | os.PathLike[str]]
) -> None:
    """Writes what `render` gives, whole or not at all."""
    page = render(facts, pictures)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")


def render(facts: Mapping[str, Any], pictures: Mapping[str, str | os.PathLike[str]]) -> str:
    """One HTML page that needs no other file and no network; everything from outside is escaped.

    Args:
      facts: `slide` (name, path, width, height, mpp, mpp_source, reader), `model` (name, checkpoint, step, data and
        protocol of its training, labels, thresholds by label or None, tile_um), `tissue` (mm² by kind: tissue, and
        what was excluded), `tiles` (their number), `tsr` (what `tsr.measure` returns, or None), `warnings` (sentences).
      pictures: caption -> PNG or JPEG file; the first is shown large.

    Raises KeyError or jinja2.UndefinedError for facts that are missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "mm2": _mm2}
    tsr = facts["tsr"]
    areas = {name: tsr["areas"][name] for name in _AREAS if name in tsr["areas"]} if tsr else {}
    return environment.get_template("summary.html.jinja").render(
        **facts,
        areas=areas,
        notes=_notes(areas),
        figures=_FIGURES,
        pictures={caption: _inline(pathlib.Path(path)) for caption, path in pictures.items()},
    )


def _notes(areas: Mapping[str, Any]) -> list[str]:
    """What is to be known of the figures, and why a figure or an interval is missing; nothing twice."""
    out = []
    for name, area in areas.items():
        if area["status"] == "evaluated":
            out += [f"{name}: {note}" for note in area["notes"]]
            out += [f"{name}: {reason}" for key in _FIGURES if (reason := area[key]["reason"])]
    return list(dict.fromkeys(out))


def _inline(path: pathlib.Path) -> str:
    return f"data:{_TYPES[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _figure(figure: Mapping[str, Any], unit: str, decimals: int) -> str:
    """A figure with its interval, or why it has none."""
    value, low, high = figure["value"], figure["low"], figure["high"]
    if value is None:
        return "–"
    if low is None and high is None:
        return f"{value:.{decimals}f}{unit}"
    ends = ("no bound" if end is None else f"{end:.{decimals}f}" for end in (low, high))
    return f"{value:.{decimals}f}{unit} ({' to '.join(ends)})"


def _mm2(area: float) -> str:
    """An area in mm² with three digits that mean something, at most four after the point."""
    if not area:
        return "0"
    return f"{area:.{min(4, max(0, 2 - math.floor(math.log10(area))))}f}"
