"""Annotations of ASAP and of Aperio's ImageScope (XML) as outlines with names, in level-0 pixels."""

import dataclasses
import math
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from histojax.core.errors import RunError

_CORNERS = 64  # of an ellipse, which ImageScope stores as its box
_NO_AREAS = {"dot": "Point", "pointset": "MultiPoint", "measurement": "LineString", "arrow": "LineString"}
# ImageScope's types of regions, and ASAP's by name.
_KINDS = {"0": "polygon", "1": "polygon", "2": "ellipse", "3": "arrow", "4": "measurement", "5": "pointset"}


class XmlError(RunError):
    """A file that is not XML of ASAP or ImageScope; the message lacks the file's name."""


@dataclasses.dataclass(frozen=True)
class Outline:
    """A drawn object.

    Attributes:
      name: its group or layer, else its own name; empty if it has neither.
      geometry: the geometry as GeoJSON has it.
      where: its position in the file, for messages.
      hole: whether it is cut out of the others of its name (ImageScope's negative regions).
    """

    name: str
    geometry: dict[str, object]
    where: str
    hole: bool = False


def outlines(text: str) -> list[Outline]:
    """Read the objects of a file, in its order.

    Raises:
      XmlError: the text is not XML, declares a document type, or is of another program.
    """
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text):
        raise XmlError("declares a document type, which annotations never do; export them again")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise XmlError(f"invalid XML ({error}); export the annotations again") from error
    if root.tag == "ASAP_Annotations":
        return list(_asap(root))
    if root.tag == "Annotations":
        return list(_image_scope(root))
    raise XmlError(
        f"its outermost element is '{root.tag}': it must be ASAP's ASAP_Annotations or ImageScope's Annotations"
    )


def _asap(root: ElementTree.Element) -> Iterator[Outline]:
    for number, item in enumerate(root.iter("Annotation")):
        group = item.get("PartOfGroup", "")
        points = sorted(item.iter("Coordinate"), key=lambda point: _number(point.get("Order", ""), 0))
        name = group if group not in ("", "None") else item.get("Name", "")
        yield Outline(name.strip(), _geometry(item.get("Type", "").lower(), points), f"annotation {number}")


def _image_scope(root: ElementTree.Element) -> Iterator[Outline]:
    for number, layer in enumerate(root.iter("Annotation")):
        attribute = layer.find("./Attributes/Attribute")
        layer_name = layer.get("Name", "") or ("" if attribute is None else attribute.get("Value", ""))
        for place, region in enumerate(layer.iter("Region")):
            name = layer_name or region.get("Text", "")
            kind = _KINDS.get(region.get("Type", "0"), "polygon")
            geometry = _geometry(kind, list(region.iter("Vertex")))
            where = f"annotation {number}, region {place}"
            yield Outline(name.strip(), geometry, where, hole=region.get("NegativeROA") == "1")


def _geometry(kind: str, points: list[ElementTree.Element]) -> dict[str, object]:
    ring = [[_number(point.get("X", ""), math.nan), _number(point.get("Y", ""), math.nan)] for point in points]
    if kind in _NO_AREAS:
        return {"type": _NO_AREAS[kind], "coordinates": ring}
    if kind == "ellipse" and len(ring) >= 2:
        (left, top), (right, bottom) = ([choose(axis) for axis in zip(*ring, strict=True)] for choose in (min, max))
        angles = [2 * math.pi * corner / _CORNERS for corner in range(_CORNERS)]
        x, y, across, down = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
        ring = [[x + across * math.cos(angle), y + down * math.sin(angle)] for angle in angles]
    return {"type": "Polygon", "coordinates": [ring]}


def _number(text: str, otherwise: float) -> float:
    """A number as these programs write it, with a comma in some countries."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return otherwise
