"""The site of a folder that `histojax slide` wrote: the list of slides, and a page per slide."""

import dataclasses
import functools
import logging
import pathlib
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import jinja2

from data_pipelines.audit.measures import thumbnail
from data_pipelines.errors import BadImageError
from data_pipelines.pixels import decode
from histojax.core.errors import RunError
from histojax.core.files import read_json
from histojax.evaluation.view import site
from histojax.slides import cohort, summary, tile_table
from histojax.slides.labels import unique_file_names
from histojax.slides.readers.reader import SlideError
from histojax.slides.slide_analysis import TSR_FILE
from histojax.slides.view import deep_zoom, layers
from histojax.slides.view.slide_files import SlideFiles, SlideMissing

_log = logging.getLogger(__name__)
_FOLDER = pathlib.Path(__file__).parent
VENDOR = _FOLDER / "vendor"
_SCRIPTS = (_FOLDER / "cohort.js", _FOLDER / "slide.js")
_OPENSEADRAGON = (VENDOR / "openseadragon.min.js", VENDOR / "openseadragon.LICENSE.txt")
_TEMPLATES = (_FOLDER, pathlib.Path(summary.__file__).parent)
_THUMBNAIL = 200  # pixels of the longer side
_TILE = re.compile(r"slide_files/(\d{1,2})/(\d{1,6})_(\d{1,6})\.jpg")
_PICTURE = re.compile(r"(overlay|slide|tissue|heatmap_[^/]+)\.png")
_TABLES = ("tiles.parquet", "tiles.csv")
_LISTED = ("stroma_percentage", "tsr")  # figures in the list
_DAMAGED = "was written by another version of histojax or is damaged: analyze the slide again with --redo"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A slide of the cohort.

    Attributes:
      key: its name in addresses.
      folder: its results.
      record: content of `slide.json`.
      measured: content of `tsr.json`; None without one.
    """

    key: str
    folder: pathlib.Path
    record: Mapping[str, Any]
    measured: Mapping[str, Any] | None

    @property
    def done(self) -> bool:
        """Whether the analysis of the slide succeeded."""
        return bool(self.record["status"] == cohort.DONE)

    @property
    def pictures(self) -> list[str]:
        """Names of its pictures, the overlay first."""
        names = [path.name for path in sorted(self.folder.glob("*.png")) if _PICTURE.fullmatch(path.name)]
        return sorted(names, key=lambda name: (name != "overlay.png", name))

    @property
    def area(self) -> Mapping[str, Any] | None:
        """The area of `tsr.json` that the list shows: the region of interest, else the whole tissue."""
        areas = (self.measured or {}).get("areas", {})
        found: Mapping[str, Any] | None = areas.get("region") or areas.get("whole tissue")
        return found


class CohortSite:
    """The pages of a cohort; see `histojax.evaluation.view.site.Site`. Close it after use.

    Only files inside the folder are shown; the slides themselves are read wherever they are.
    """

    def __init__(
        self, output: pathlib.Path, slides: pathlib.Path | None = None, finest_mpp: float | None = None
    ) -> None:
        """Read a folder.

        Args:
          output: folder that `histojax slide` wrote.
          slides: folder where the slides are now; None: where they were.
          finest_mpp: deep zoom ends at so many µm/px; None: at those of the slide.

        Raises:
          RunError: the folder has no slide, or `slides` is not a folder.
        """
        self._output, self._root = output, output.resolve()
        self._files, self._finest_mpp, self._tiles = SlideFiles(slides), finest_mpp, deep_zoom.Tiles()
        self._assets = site.assets(*_SCRIPTS, *_OPENSEADRAGON)
        self.refresh()
        if not self._entries:
            raise RunError(f"{output}: no slide is finished here; give the --output folder of `histojax slide`")

    @property
    def entries(self) -> list[Entry]:
        """The slides, sorted by name."""
        return list(self._entries.values())

    def refresh(self) -> None:
        """Read the records again: a cohort may be growing."""
        every = cohort.records(self._output).items()
        found = [(folder, record) for folder, record in every if self._inside(folder / cohort.RECORD)]
        keys = unique_file_names([folder.name for folder, _ in found])
        self._entries = {
            key: Entry(key, folder, record, read_json(folder / TSR_FILE) if self._inside(folder / TSR_FILE) else None)
            for folder, record in found
            if {"status", "name"} <= record.keys() and (key := keys[folder.name])
        }

    def paths(self) -> Iterator[str]:
        """Yield every path of the site."""
        yield site.INDEX
        yield from self._assets
        for entry in self.entries:
            folder = f"slides/{entry.key}"
            yield f"{folder}/{site.INDEX}"
            if not entry.done:
                continue
            yield f"{folder}/thumbnail.jpg"
            yield from (f"{folder}/{name}" for name in entry.pictures)
            if self._slide(entry)[0] is not None:
                yield f"{folder}/slide.dzi"
                yield from (f"{folder}/slide_files/{path}" for path in self._pyramid(entry).paths())

    def read(self, path: str) -> bytes | None:
        """Return the content of a path; None if there is no such path.

        Raises:
          RunError: it cannot be made; the message says why.
        """
        if path == site.INDEX:
            self.refresh()
            return self._page("cohort.html.jinja", title=self._root.name, root="", rows=list(map(_row, self.entries)))
        if path in self._assets:
            return self._assets[path]
        place, _, rest = path.removeprefix("slides/").partition("/")
        entry = self._entries.get(place) if path.startswith("slides/") else None
        if entry is None:
            return None
        try:
            return self._read_of(entry, rest)
        except (KeyError, TypeError, AttributeError, jinja2.UndefinedError) as error:
            raise RunError(f"{entry.folder} {_DAMAGED} ({error})") from error

    def close(self) -> None:
        """Close the slides that are open."""
        self._tiles.close()

    def size(self) -> int:
        """Estimate the bytes of the site as a folder, nearly all of them in tiles: 0.25 per pixel."""
        shown = [entry for entry in self.entries if entry.done and self._slide(entry)[0]]
        return sum(self._pyramid(entry).pixels() for entry in shown) // 4

    def _read_of(self, entry: Entry, rest: str) -> bytes | None:
        """Return a page or picture of a slide by its path below the slide's folder."""
        if rest == site.INDEX:
            return self._slide_page(entry)
        if not entry.done:
            return None
        if rest == "thumbnail.jpg":
            return self._thumbnail(entry)
        if _PICTURE.fullmatch(rest):
            return self._file(entry.folder / rest)
        slide, _ = self._slide(entry)
        if slide is None:
            return None
        if rest == "slide.dzi":
            return _dzi(self._pyramid(entry))
        if not (match := _TILE.fullmatch(rest)):
            return None
        level, column, row = map(int, match.groups())
        return self._tiles.read(slide, entry.record["facts"], self._pyramid(entry), (level, column, row))

    def _slide_page(self, entry: Entry) -> bytes:
        """The page of a slide."""
        slide, missing = self._slide(entry) if entry.done else (None, "")
        facts: dict[str, Any] = {"labels": [], "outlines": [], "tiles": {"count": 0}}
        warnings = [*entry.record.get("warnings", [])]
        if entry.done:
            table = self._table(entry)
            facts = {key: entry.record["facts"][key] for key in ("width", "height", "mpp", "mpp_y")}
            facts |= layers.tile_layers(entry.record, entry.measured, table)
            facts["outlines"], unread = layers.outlines(entry.record, entry.measured)
            warnings += unread
            if slide is not None:
                facts["slide"] = self._pyramid(entry).description("slide_files/")
        keys = list(self._entries)
        position = keys.index(entry.key)
        areas = summary.ordered_areas(entry.measured)
        return self._page(
            "slide.html.jinja",
            title=entry.record["name"],
            root="../../",
            entry=entry,
            area=entry.area,
            areas=areas,
            area_name=next(iter(areas), ""),
            tsr=entry.measured,
            notes=summary.notes(areas),
            data=facts,
            missing=missing,
            warnings=list(dict.fromkeys(warnings)),
            pictures={name: _caption(name) for name in entry.pictures} if entry.done else {},
            previous=keys[position - 1] if position else None,
            next=keys[position + 1] if position + 1 < len(keys) else None,
        )

    def _table(self, entry: Entry) -> Any:
        path = next((path for path in map(entry.folder.joinpath, _TABLES) if path.exists()), entry.folder / _TABLES[0])
        if not self._inside(path):
            raise RunError(f"{path}: links to a file outside of {self._output}, which is not read")
        return tile_table.read(path)

    def _page(self, template: str, **facts: Any) -> bytes:
        filters = summary.FILTERS | {"address": functools.partial(urllib.parse.quote, safe="")}
        return site.render(template, _TEMPLATES, filters=filters, figures=summary.FIGURES, **facts)

    def _pyramid(self, entry: Entry) -> deep_zoom.Pyramid:
        return deep_zoom.pyramid_of(entry.record["facts"], self._finest_mpp)

    def _slide(self, entry: Entry) -> tuple[pathlib.Path | None, str]:
        """The slide's file, or None and why its pixels are not shown."""
        try:
            path = self._files.find(entry.record)
            self._tiles.open(path, entry.record["facts"])
        except (SlideMissing, SlideError) as error:
            return None, str(error)
        return path, ""

    def _thumbnail(self, entry: Entry) -> bytes | None:
        """A small picture of the slide, else of the overlay."""
        slide, _ = self._slide(entry)
        pyramid = self._pyramid(entry)
        try:
            if slide is not None:
                return self._tiles.read(slide, entry.record["facts"], pyramid, (pyramid.whole, 0, 0))
        except SlideError as error:
            _log.warning("%s", error)
        overlay = self._file(entry.folder / "overlay.png")
        try:
            return None if overlay is None else thumbnail(decode(overlay), _THUMBNAIL)
        except (BadImageError, cv2.error) as error:
            raise RunError(f"{entry.folder / 'overlay.png'}: {error}") from error

    def _inside(self, path: pathlib.Path) -> bool:
        """Whether a path, its links followed, lies in the folder."""
        return path.resolve().is_relative_to(self._root)

    def _file(self, path: pathlib.Path) -> bytes | None:
        """The content of a file in the folder; None if there is none, or a link leads out of the folder."""
        return path.read_bytes() if self._inside(path) and path.is_file() else None


def _row(entry: Entry) -> dict[str, Any]:
    """A line of the list; a damaged slide must not hide the others."""
    try:
        return _described(entry)
    except (KeyError, TypeError, AttributeError):
        facts = {"key": entry.key, "name": entry.folder.name, "done": False, "status": "damaged", "reason": _DAMAGED}
        return facts | {"figures": None, "stroma_class": "", "tissue_mm2": None, "warnings": []}


def _described(entry: Entry) -> dict[str, Any]:
    area, record = entry.area, entry.record
    if not entry.done:
        status, reason = "failed", record.get("reason") or ""
    elif area is None:
        status, reason = "not measured", "the model has no labels for tumor and stroma"
    else:
        status, reason = area["status"], area["reason"] or ""
    figures, stroma_class = None, ""
    if status == "evaluated" and area is not None:
        figures = {key: {end: area[key][end] for end in ("value", "low", "high")} for key in _LISTED}
        stroma_class = area["stroma_class"]["name"]
    return {
        "key": entry.key,
        "name": record["name"],
        "done": entry.done,
        "status": status,
        "reason": reason,
        "figures": figures,
        "stroma_class": stroma_class,
        "tissue_mm2": record.get("facts", {}).get("tissue_mm2"),
        "warnings": record.get("warnings", []),
    }


def _caption(name: str) -> str:
    """What a picture shows."""
    known = {"overlay.png": "predicted labels on the slide", "slide.png": "the slide"}
    known["tissue.png"] = "analyzed and excluded areas"
    return known.get(name) or f"probability of {name.removeprefix('heatmap_').removesuffix('.png')}"


def _dzi(pyramid: deep_zoom.Pyramid) -> bytes:
    """The description of a DeepZoom image for other viewers."""
    image = pyramid.description("")["Image"]
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Image xmlns="{image["xmlns"]}" Format="jpg" '
        f'Overlap="{image["Overlap"]}" TileSize="{image["TileSize"]}">'
        f'<Size Width="{pyramid.width}" Height="{pyramid.height}"/></Image>\n'
    ).encode()
