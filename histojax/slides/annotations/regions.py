"""Regions of interest and annotations in level-0 pixels, read from files of QuPath (GeoJSON), ASAP and ImageScope."""

import dataclasses
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from histojax.core.errors import RunError
from histojax.slides.annotations import xml_files

SUFFIXES = (".geojson", ".json", ".geojson.gz", ".json.gz", ".xml")
_MAX_BYTES = 1 << 29  # half a GB of text is exported cells or a decompression bomb, not annotations
_MAX_DEPTH = 20  # objects within objects, and collections within collections
_MAX_COORDINATE = 1e8  # pixels: no slide is this large, and areas of larger polygons lose all digits
_AREAS = ("Polygon", "MultiPolygon", "GeometryCollection")
_NO_AREAS = ("Point", "MultiPoint", "LineString", "MultiLineString")
# Like QuPath, treat an object without a type as an annotation. QuPath 0.3 called the property object_type.
_ANNOTATION = ("annotation", "unknown")


class RegionError(RunError):
    """Unusable regions; the message names the file, the feature and the remedy."""


@dataclasses.dataclass(frozen=True)
class Region:
    """An annotated area.

    Attributes:
      name: the classification (several are joined as in QuPath: "tumor: stroma"), else the object's name, else empty.
      shape: Polygon or MultiPolygon in level-0 pixels, valid and not empty.
      feature: position in the file, as shown in error messages.
    """

    name: str
    shape: BaseGeometry
    feature: str


@dataclasses.dataclass
class _Found:
    """What was found in a file so far: regions, warnings, and the number of detections."""

    regions: list[Region] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    detections: int = 0


def read(path: str | os.PathLike[str]) -> tuple[list[Region], list[str]]:
    """Read the annotations of a GeoJSON file (`.gz`: compressed), or of ASAP or ImageScope (`.xml`), in file order.

    A GeoJSON file may hold a FeatureCollection, a Feature, a geometry, or a list of these. Child objects of QuPath's
    hierarchy are read like the others. Tiles, cells and other detections are skipped. Points, lines and objects
    without a geometry have no area and are ignored with a warning. An outline that crosses itself is repaired with a
    warning.

    Returns:
      At least one region, and the warnings.

    Raises:
      RegionError: the file cannot be read as such a file or has no annotation with an area, or a polygon has
        coordinates that are not pixels or cannot be repaired.
    """
    path = pathlib.Path(path)
    text = _read_text(path)
    found = _Found()
    if path.suffix.lower() == ".xml":
        _collect_xml(path, text, found)
    else:
        _collect(path, _parse_json(path, text), "", found, depth=0)
    if not found.regions:
        why = "the file is empty"
        if found.detections:
            why = f"all {found.detections} objects are tiles, cells or other detections"
        if found.warnings:
            why = found.warnings[0]
        raise RegionError(f"{path}: no annotation with an area ({why}); draw one and export it again")
    return found.regions, found.warnings


def files_of(folder: pathlib.Path, names: Iterable[str]) -> list[pathlib.Path]:
    """Return the annotation files in a folder that are named like a slide: `NAME.geojson`, or with another suffix.

    Args:
      folder: the folder.
      names: by which the slide is known, such as the stem of its file and the file's name.
    """
    files = (folder / f"{name}{suffix}" for name in dict.fromkeys(names) for suffix in SUFFIXES)
    return [file for file in files if file.is_file()]


def clip(
    regions: Sequence[Region], width: int, height: int, path: str | os.PathLike[str]
) -> tuple[list[Region], list[str]]:
    """Clip regions to a slide of `width` × `height` level-0 pixels.

    Args:
      regions: the regions of one file.
      width: of the slide in level-0 pixels.
      height: of the slide in level-0 pixels.
      path: the regions' file, for messages.

    Returns:
      The regions within the slide, and a warning for each one that reached beyond it.

    Raises:
      RegionError: all regions lie outside the slide.
    """
    slide = shapely.box(0, 0, width, height)
    clipped, warnings = [], []
    for region in regions:
        if slide.covers(region.shape):
            clipped.append(region)
            continue
        within = _polygonal(shapely.intersection(region.shape, slide))
        lost = 100 * (1 - within.area / region.shape.area)
        warnings.append(f"{path}, {region.feature}: {lost:.3g} % of its area lies outside the slide and is ignored")
        if not within.is_empty:
            clipped.append(dataclasses.replace(region, shape=within))
    if not clipped:
        raise RegionError(
            f"{path}: all annotations lie outside the slide of {width} × {height} pixels; check that the file belongs "
            "to this slide and that its coordinates are full-resolution pixels"
        )
    return clipped, warnings


def union(regions: Sequence[Region]) -> BaseGeometry:
    """The union of all regions; overlaps count once."""
    return shapely.union_all([region.shape for region in regions])


def inside(table: pd.DataFrame, shape: BaseGeometry) -> NDArray[np.bool_]:
    """Whether each tile's centre lies in a shape of level-0 pixels: bool [n]; holes are outside."""
    shapely.prepare(shape)
    x = table["minx"].to_numpy(np.float64) + table["width"].to_numpy(np.float64) / 2
    y = table["miny"].to_numpy(np.float64) + table["height"].to_numpy(np.float64) / 2
    return np.asarray(shapely.contains_xy(shape, x, y), bool).reshape(len(table))


def _read_text(path: pathlib.Path) -> str:
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise RegionError(
                f"{path}: more than {_MAX_BYTES >> 20} MB of text; export only the annotations, without cells"
            )
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RegionError(f"{path}: cannot be read ({error})") from error


def _parse_json(path: pathlib.Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # broken text, numbers of a million digits, nesting
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RegionError(f"{path}: invalid JSON ({reason}); export the annotations again") from error


def _collect_xml(path: pathlib.Path, text: str, found: _Found) -> None:
    """Add the annotations of ASAP or ImageScope to `found`, without what its negative regions cut out."""
    try:
        drawn = xml_files.outlines(text)
    except xml_files.XmlError as error:
        raise RegionError(f"{path}: {error}") from error
    holes = _Found(warnings=found.warnings)
    for outline in drawn:
        _add_region(path, outline.name, outline.geometry, outline.where, holes if outline.hole else found)
    for hole in holes.regions:
        for number, region in enumerate(found.regions):
            if region.name == hole.name:
                left = _polygonal(shapely.difference(region.shape, hole.shape))
                found.regions[number] = dataclasses.replace(region, shape=left)
    found.regions[:] = [region for region in found.regions if not region.shape.is_empty]


def _collect(path: pathlib.Path, value: Any, where: str, found: _Found, depth: int) -> None:
    """Add the annotations in `value` and then those in its children to `found`."""
    if depth > _MAX_DEPTH:
        raise RegionError(f"{path}, {where}: objects are nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, dict) and value.get("type") == "FeatureCollection":
        value = value.get("features")
        if not isinstance(value, list):
            raise RegionError(f"{path}, {where or 'FeatureCollection'}: 'features' is not a list")
    if isinstance(value, list):
        place = f"{where}, child" if where else "feature"
        for n, item in enumerate(value):
            _collect(path, item, f"{place} {n}", found, depth + 1)
        return
    where = where or "top level"
    kind = value.get("type") if isinstance(value, dict) else None
    if kind in (*_AREAS, *_NO_AREAS):
        _add_region(path, "", value, where, found)
        return
    if kind != "Feature":
        raise RegionError(
            f"{path}, {where}: expected a Feature or one of {', '.join(_AREAS)}; check that this is GeoJSON"
        )
    properties = value.get("properties") or {}
    if not isinstance(properties, dict):
        raise RegionError(f"{path}, {where}: 'properties' is not an object")
    if properties.get("objectType", properties.get("object_type", "annotation")) in _ANNOTATION:
        _add_region(path, _name(path, properties, where), value.get("geometry"), where, found)
    else:
        found.detections += 1
    if children := properties.get("childObjects"):
        _collect(path, children, where, found, depth + 1)


def _name(path: pathlib.Path, properties: dict[str, Any], where: str) -> str:
    """The classification, else the object's name. QuPath 0.4 and later write `names` for derived classes."""
    name: Any = properties.get("classification")
    if isinstance(name, dict):
        names = name.get("names")
        name = ": ".join(map(str, names)) if isinstance(names, list) else name.get("name")
    name = name or properties.get("name") or ""
    if not isinstance(name, str):
        raise RegionError(f"{path}, {where}: the classification is not text")
    return name.strip()


def _add_region(path: pathlib.Path, name: str, geometry: Any, where: str, found: _Found) -> None:
    """Add a valid region made from a GeoJSON geometry, with the warnings about it."""
    polygons = [_polygon(path, rings, where) for rings in _polygons(path, geometry, where, found, depth=0)]
    if not polygons:
        return
    shape: BaseGeometry = polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)
    try:
        if not shapely.is_valid(shape):
            # "structure" keeps every area that an outline encloses, however often it crosses itself; "linework" cuts
            # holes.
            shape = _polygonal(shapely.make_valid(shape, method="structure", keep_collapsed=False))
            found.warnings.append(f"{path}, {where}: the outline crosses itself and was repaired")
    except shapely.errors.ShapelyError as error:
        raise RegionError(f"{path}, {where}: a polygon cannot be repaired ({error}); draw it again") from error
    if shape.is_empty:
        raise RegionError(f"{path}, {where}: a polygon has no area; draw it again or delete it")
    found.regions.append(Region(name, shape, where))


def _polygons(path: pathlib.Path, geometry: Any, where: str, found: _Found, depth: int) -> list[Any]:
    """The list of rings of every polygon in a geometry; adds a warning where a part has no area."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if geometry is None or kind in _NO_AREAS:
        what = "no geometry" if geometry is None else f"a {kind}, which has no area"
        found.warnings.append(f"{path}, {where}: {what}; it is ignored")
        return []
    if kind not in _AREAS or depth > _MAX_DEPTH:
        actual = f"a {kind}" if isinstance(kind, str) else "no geometry"
        raise RegionError(
            f"{path}, {where}: {actual} where an area is expected ({', '.join(_AREAS)}); delete the object, or "
            "export only annotations with an area"
        )
    parts = geometry.get("geometries" if kind == "GeometryCollection" else "coordinates")
    if not isinstance(parts, list) or not parts:
        raise RegionError(f"{path}, {where}: a {kind} has no coordinates")
    if kind == "GeometryCollection":
        return [rings for part in parts for rings in _polygons(path, part, where, found, depth + 1)]
    return parts if kind == "MultiPolygon" else [parts]


def _polygon(path: pathlib.Path, rings: Any, where: str) -> Polygon:
    if not isinstance(rings, list) or not rings:
        raise RegionError(f"{path}, {where}: a polygon has no rings")
    shell, *holes = [_ring(path, ring, where) for ring in rings]
    return Polygon(shell, holes)


def _ring(path: pathlib.Path, ring: Any, where: str) -> NDArray[np.float64]:
    """The corners of a ring, float64 [n, 2]; a third coordinate (an image stack) is dropped."""
    try:
        corners = np.array([[x, y] for x, y, *_ in ring])
    except (TypeError, ValueError):  # not pairs
        corners = np.empty(0)
    # numpy would silently convert strings and booleans to numbers.
    if corners.ndim != 2 or corners.dtype.kind not in "iuf" or any(isinstance(v, bool) for p in ring for v in p[:2]):
        raise RegionError(f"{path}, {where}: a polygon ring is not a list of number pairs")
    if not (np.abs(corners) <= _MAX_COORDINATE).all():
        raise RegionError(f"{path}, {where}: a coordinate is not a slide pixel (NaN, or beyond ±{_MAX_COORDINATE:g})")
    if len(np.unique(corners, axis=0)) < 3:
        raise RegionError(f"{path}, {where}: a polygon ring has fewer than three corners")
    return corners.astype(np.float64)


def _polygonal(shape: BaseGeometry) -> BaseGeometry:
    """The parts of a shape that have an area; repairing and clipping also leave lines and points."""
    return shapely.union_all([part for part in shapely.get_parts(shape) if isinstance(part, (Polygon, MultiPolygon))])
