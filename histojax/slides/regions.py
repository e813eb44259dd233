"""Regions of interest and annotations from GeoJSON, as QuPath and others export them, in level-0 pixels."""

import dataclasses
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from histojax.core.errors import RunError

SUFFIXES = (".geojson", ".json", ".geojson.gz", ".json.gz")
_LARGEST = 1 << 29  # bytes of text: half a GB of annotations is somebody's cells, or a bomb
_DEEPEST = 20  # objects within objects, and collections within collections
_FARTHEST = 1e8  # pixels: no slide is so large, and areas of such polygons have no digits left
_GEOMETRIES = ("Polygon", "MultiPolygon", "GeometryCollection")
# QuPath takes an object without a type for an annotation, too; version 0.3 called the property object_type.
_ANNOTATION = ("annotation", "unknown")


class RegionError(RunError):
    """Regions that cannot be used; the message names the file, the feature and the remedy."""


@dataclasses.dataclass(frozen=True)
class Region:
    """An annotation with an area.

    Attributes:
      name: its classification (several joined as in QuPath, "tumor: stroma"), else its own name, else empty.
      shape: Polygon or MultiPolygon in level-0 pixels, valid and not empty.
      feature: its place in the file, as an error message would name it.
      repaired: whether its outline crossed itself and was made valid.
    """

    name: str
    shape: BaseGeometry
    feature: str
    repaired: bool = False


def read(path: str | os.PathLike[str]) -> list[Region]:
    """The annotations of a GeoJSON file (`.gz`: compressed), in its order; at least one.

    A FeatureCollection, a Feature, a geometry, or a list of these; child objects of QuPath's hierarchy are read like
    the others. Tiles, cells and other detections are passed over. An outline that crosses itself is repaired.

    Raises:
      RegionError: unreadable, no JSON, no GeoJSON, no annotation; a feature that is no polygon, has coordinates that
        are no pixels, or cannot be repaired.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:  # broken text, numbers of a million digits, nesting
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise RegionError(f"{path}: not readable as JSON ({reason}); export the annotations again") from error
    found: list[Region] = []
    detections = _collect(path, content, "", found, depth=0)
    if not found:
        why = f"all of its {detections} objects are tiles, cells or other detections" if detections else "it is empty"
        raise RegionError(f"{path}: no annotation ({why}); draw one in QuPath and export it as GeoJSON")
    return found


def clip(
    regions: Sequence[Region], width: int, height: int, path: str | os.PathLike[str]
) -> tuple[list[Region], list[str]]:
    """The regions within a slide of `width` × `height` level-0 pixels, and a warning for each that went beyond it.

    Raises:
      RegionError: nothing is left; `path` is the file to name.
    """
    slide = shapely.box(0, 0, width, height)
    kept, warnings = [], []
    for region in regions:
        if slide.covers(region.shape):
            kept.append(region)
            continue
        within = _polygonal(shapely.intersection(region.shape, slide))
        lost = 100 * (1 - within.area / region.shape.area)
        warnings.append(f"{path}, {region.feature}: {lost:.3g} % of it lie outside the slide and are left out")
        if not within.is_empty:
            kept.append(dataclasses.replace(region, shape=within))
    if not kept:
        raise RegionError(
            f"{path}: everything in it lies outside the slide of {width} × {height} pixels; is it of another slide, or "
            "are its coordinates not full-resolution pixels?"
        )
    return kept, warnings


def union(regions: Sequence[Region]) -> BaseGeometry:
    """All regions as one shape."""
    return shapely.union_all([region.shape for region in regions])


def inside(table: pd.DataFrame, shape: BaseGeometry) -> NDArray[np.bool_]:
    """Which tiles of a tile table have their centre in a shape of level-0 pixels: bool [n]; holes are outside."""
    shapely.prepare(shape)
    x = table["minx"].to_numpy(np.float64) + table["width"].to_numpy(np.float64) / 2
    y = table["miny"].to_numpy(np.float64) + table["height"].to_numpy(np.float64) / 2
    return np.asarray(shapely.contains_xy(shape, x, y), bool).reshape(len(table))


def _text(path: pathlib.Path) -> str:
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise RegionError(
                f"{path}: more than {_LARGEST >> 20} MB of text; export the annotations only, not the cells"
            )
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RegionError(f"{path}: not readable ({error})") from error


def _collect(path: pathlib.Path, value: Any, where: str, found: list[Region], depth: int) -> int:
    """Appends the annotations in `value`, its children behind it; returns how many other objects there were."""
    if depth > _DEEPEST:
        raise RegionError(f"{path}, {where}: objects within objects more than {_DEEPEST} deep")
    if isinstance(value, dict) and value.get("type") == "FeatureCollection":
        value = value.get("features")
        if not isinstance(value, list):
            raise RegionError(f"{path}, {where or 'FeatureCollection'}: 'features' is no list")
    if isinstance(value, list):
        place = f"{where}, child" if where else "feature"
        return sum(_collect(path, one, f"{place} {n}", found, depth + 1) for n, one in enumerate(value))
    where = where or "the whole file"
    kind = value.get("type") if isinstance(value, dict) else None
    if kind in _GEOMETRIES:
        found.append(_region(path, "", value, where))
        return 0
    if kind != "Feature":
        raise RegionError(f"{path}, {where}: neither a Feature nor {', '.join(_GEOMETRIES)}; is this GeoJSON?")
    properties = value.get("properties") or {}
    if not isinstance(properties, dict):
        raise RegionError(f"{path}, {where}: 'properties' is no object")
    passed_over = 0
    if properties.get("objectType", properties.get("object_type", "annotation")) in _ANNOTATION:
        found.append(_region(path, _name(path, properties, where), value.get("geometry"), where))
    else:
        passed_over = 1
    children = properties.get("childObjects") or []
    return passed_over + (_collect(path, children, where, found, depth + 1) if children else 0)


def _name(path: pathlib.Path, properties: dict[str, Any], where: str) -> str:
    """QuPath 0.4 and later write `name`, or `names` of a derived class; earlier ones `name` alone."""
    name: Any = properties.get("classification")
    if isinstance(name, dict):
        names = name.get("names")
        name = ": ".join(map(str, names)) if isinstance(names, list) else name.get("name")
    name = name or properties.get("name") or ""
    if not isinstance(name, str):
        raise RegionError(f"{path}, {where}: its classification is no text")
    return name.strip()


def _region(path: pathlib.Path, name: str, geometry: Any, where: str) -> Region:
    polygons = [_polygon(path, rings, where) for rings in _polygons(path, geometry, where, depth=0)]
    shape: BaseGeometry = polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)
    valid = bool(shapely.is_valid(shape))
    if not valid:
        # What lies within an outline stays within it however often that crosses itself; "linework" would cut holes.
        shape = _polygonal(shapely.make_valid(shape, method="structure", keep_collapsed=False))
    if shape.is_empty:
        raise RegionError(f"{path}, {where}: a polygon without any area; draw it again, or delete it")
    return Region(name, shape, where, repaired=not valid)


def _polygons(path: pathlib.Path, geometry: Any, where: str, depth: int) -> list[Any]:
    """The lists of rings of all polygons of a geometry."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in _GEOMETRIES or depth > _DEEPEST:
        said = f"a {kind}" if isinstance(kind, str) else "no geometry"
        raise RegionError(
            f"{path}, {where}: {said} where an area is expected ({', '.join(_GEOMETRIES)}); delete it, or export only "
            "the annotations that have one"
        )
    parts = geometry.get("geometries" if kind == "GeometryCollection" else "coordinates")
    if not isinstance(parts, list) or not parts:
        raise RegionError(f"{path}, {where}: a {kind} without coordinates")
    if kind == "GeometryCollection":
        return [rings for part in parts for rings in _polygons(path, part, where, depth + 1)]
    return parts if kind == "MultiPolygon" else [parts]


def _polygon(path: pathlib.Path, rings: Any, where: str) -> Polygon:
    if not isinstance(rings, list) or not rings:
        raise RegionError(f"{path}, {where}: a polygon without rings")
    shell, *holes = [_ring(path, ring, where) for ring in rings]
    return Polygon(shell, holes)


def _ring(path: pathlib.Path, ring: Any, where: str) -> NDArray[np.float64]:
    """The corners of a ring, float64 [n, 2]; a third coordinate, as of a stack, is dropped."""
    try:
        corners = np.array([[x, y] for x, y, *_ in ring])
    except (TypeError, ValueError):  # not even pairs
        corners = np.empty(0)
    # Texts and truth values would become numbers silently.
    if corners.ndim != 2 or corners.dtype.kind not in "iuf" or any(isinstance(v, bool) for p in ring for v in p[:2]):
        raise RegionError(f"{path}, {where}: a ring of its polygon is no list of pairs of numbers")
    if not (np.abs(corners) <= _FARTHEST).all():
        raise RegionError(f"{path}, {where}: a coordinate is no pixel of any slide (NaN, or beyond ±{_FARTHEST:g})")
    if len(np.unique(corners, axis=0)) < 3:
        raise RegionError(f"{path}, {where}: a ring of its polygon has fewer than three corners")
    return corners.astype(np.float64)


def _polygonal(shape: BaseGeometry) -> BaseGeometry:
    """What of a shape has an area: repairing and clipping leave lines and points, too."""
    return shapely.union_all([part for part in shapely.get_parts(shape) if isinstance(part, (Polygon, MultiPolygon))])
