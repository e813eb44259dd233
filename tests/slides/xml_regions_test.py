"""Regions from the XML of ASAP and ImageScope, as these programs write it."""

import math
import pathlib

import pytest

from histojax.slides.annotations import regions
from histojax.slides.annotations.regions import RegionError


def asap(kind: str, corners: str, group: str = "tumor") -> str:
    points = "".join(
        f'<Coordinate Order="{order}" X="{x}" Y="{y}" />'
        for order, (x, y) in enumerate(corner.split(",") for corner in corners.split())
    )
    return (
        f'<Annotation Name="Annotation 0" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{points}</Coordinates></Annotation>"
    )


def asap_file(*annotations: str) -> str:
    groups = '<AnnotationGroups><Group Name="tumor" PartOfGroup="None" Color="#00ff00"/></AnnotationGroups>'
    drawn = f"<Annotations>{''.join(annotations)}</Annotations>"
    return f'<?xml version="1.0"?><ASAP_Annotations>{drawn}{groups}</ASAP_Annotations>'


def region(corners: str, kind: int = 0, negative: int = 0) -> str:
    points = "".join('<Vertex X="{}" Y="{}" Z="0"/>'.format(*corner.split(",")) for corner in corners.split())
    return f'<Region Id="1" Type="{kind}" Text="" NegativeROA="{negative}"><Vertices>{points}</Vertices></Region>'


def scope_file(name: str, *drawn: str, attribute: str = "") -> str:
    listed = f'<Attributes><Attribute Name="Description" Id="0" Value="{attribute}"/></Attributes>'
    return (
        f'<Annotations MicronsPerPixel="0.5"><Annotation Id="1" Name="{name}" LineColor="65280">{listed}'
        f"<Regions>{''.join(drawn)}</Regions></Annotation></Annotations>"
    )


def read(tmp_path: pathlib.Path, text: str) -> tuple[list[regions.Region], list[str]]:
    (tmp_path / "a.xml").write_text(text, encoding="utf-8")
    return regions.read(tmp_path / "a.xml")


SQUARE = "0,0 10,0 10,10 0,10"


def test_asap(tmp_path: pathlib.Path) -> None:
    text = asap_file(
        asap("Polygon", SQUARE), asap("Spline", "20,20 30,20 30,30", group="None"), asap("Dot", "5,5"),
        asap("Measurement", "1,1 2,2"),
    )  # fmt: skip
    found, warnings = read(tmp_path, text)
    assert [(each.name, each.shape.area) for each in found] == [("tumor", 100), ("Annotation 0", 50)]
    assert [warning.partition(", ")[2] for warning in warnings] == [
        "annotation 2: a Point, which has no area; it is ignored",
        "annotation 3: a LineString, which has no area; it is ignored",
    ]


def test_corners_are_taken_in_their_order_and_with_a_decimal_comma(tmp_path: pathlib.Path) -> None:
    shuffled = (
        '<Annotation Name="a" Type="Polygon" PartOfGroup="None"><Coordinates>'
        '<Coordinate Order="2" X="10,5" Y="10"/><Coordinate Order="0" X="0" Y="0"/>'
        '<Coordinate Order="3" X="0" Y="10"/><Coordinate Order="1" X="10,5" Y="0"/></Coordinates></Annotation>'
    )
    (found,), warnings = read(tmp_path, asap_file(shuffled))
    assert (found.shape.area, warnings) == (105, [])


def test_image_scope(tmp_path: pathlib.Path) -> None:
    text = scope_file("stroma", region(SQUARE), region("2,2 4,2 4,4 2,4", negative=1), region("20,0 40,10", kind=2))
    found, warnings = read(tmp_path, text)
    assert [each.name for each in found] == ["stroma", "stroma"]
    assert found[0].shape.area == 100 - 4
    assert found[1].shape.area == pytest.approx(math.pi * 10 * 5, rel=0.005)
    assert warnings == []


def test_a_layer_without_a_name_has_that_of_its_attribute(tmp_path: pathlib.Path) -> None:
    (found,), _ = read(tmp_path, scope_file("", region(SQUARE), attribute="tumor"))
    assert found.name == "tumor"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<Annotations>", r"a\.xml: invalid XML \(no element found"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><Annotations/>', "declares a document type"),
        ("<svg/>", "outermost element is 'svg': it must be ASAP's"),
        ("<Annotations/>", "no annotation with an area"),
        (asap_file(asap("Dot", "5,5")), "no annotation with an area"),
        (asap_file(asap("Polygon", "0,0 x,0 10,10")), "annotation 0: a coordinate is not a slide pixel"),
        (asap_file(asap("Polygon", "0,0 1,0")), "annotation 0: a polygon ring has fewer than three corners"),
        (scope_file("a", region(SQUARE), region("-1,-1 11,-1 11,11 -1,11", negative=1)), "no annotation with an area"),
    ],
)
def test_other_files_are_refused(tmp_path: pathlib.Path, text: str, message: str) -> None:
    with pytest.raises(RegionError, match=message):
        read(tmp_path, text)
