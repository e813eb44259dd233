"""The summary page of a slide is complete, self-contained, escaped, and explains missing figures."""

import base64
import copy
import html.parser
import pathlib
import re
from typing import Any

import cv2
import jinja2
import numpy as np
import pytest

from histojax.slides import summary


def figure(value: float | None, low: float | None = None, high: float | None = None, reason: str | None = None) -> Any:
    return {"value": value, "low": low, "high": high, "reason": reason}


def area(**changed: Any) -> dict[str, Any]:
    """As in tsr.json."""
    return {
        "status": "evaluated",
        "reason": None,
        "tiles": 1234,
        "tissue_mm2": 15.4321,
        "labels": {"tumor": {"tiles": 700, "mm2": 8.75}, "stroma": {"tiles": 500, "mm2": 6.25}},
        "tumor_mm2": 8.5,
        "stroma_mm2": 6.0,
        "stroma_percentage": figure(41.38, 35.04, 47.12),
        "tumor_percentage": figure(58.62, 52.88, 64.96),
        "tsr": figure(1.4167, 1.1222, 1.8539),
        "necrosis_share": figure(None, reason="--necrosis names no label"),
        "stroma_class": {"name": "stroma-low", "rule": "…", "same_class_share": 0.987},
        "corrected": figure(40.0, 30.12, 50.04) | {"note": "from 9 sources", "same_class_share": 0.82},
        "notes": ["9 blocks hold tumor or stroma: the interval is rough"],
    } | changed


def make_facts() -> dict[str, Any]:
    none = {key: figure(None, reason="not evaluable") for key in ("stroma_percentage", "tumor_percentage", "tsr")}
    spot = {
        "status": "not evaluable",
        "reason": "no field has tumor at its four sides",
        "stroma_class": {"name": None, "rule": "…", "same_class_share": None},
        "corrected": figure(None, reason="not evaluable") | {"note": None, "same_class_share": None},
        "notes": [],
    }
    return {
        "slide": {
            "name": "S 12-345",
            "path": "/data/S 12-345.svs",
            "width": 40_000,
            "height": 30_000,
            "mpp": 0.2501,
            "mpp_y": 0.2501,
            "mpp_source": "aperio.MPP",
            "reader": "OpenSlide 4.0.1 (aperio)",
        },
        "model": {
            "name": "ldcsf",
            "data": "tiles of liver: 9 images",
            "protocol": "patient-disjoint",
            "checkpoint": "0123456789abcdef",
            "step": 1200,
            "labels": ["tumor", "stroma"],
            "thresholds": {"tumor": 0.5, "stroma": 0.35},
            "tile_um": 112.0,
        },
        "tissue": {"background": 55.0, "tissue": 15.9, "pen": 0.0123, "blur": 0.0, "fold": 1.5},
        "tiles": 1234,
        "tsr": {
            "labels": ["tumor", "stroma"],
            "settings": {"necrosis": ""},
            "rules": ["a tile of both tumor and stroma counts half for each"],
            "cutoff": "HCC (Lv et al. 2015): stroma-high if stroma percentage >= 50 %, else stroma-low",
            "formulas": {"tsr": "TSR = A_tumor / A_stroma", "stroma_percentage": "stroma percentage = 100 x …"},
            "block_um": 1008.0,
            "areas": {"whole tissue": area(), "hot spot": area(**none | spot)},
        },
        "warnings": [],
    }


class Page(html.parser.HTMLParser):
    """Tags, and the texts of cells, row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data

    def row(self, title: str) -> list[str]:
        (cells,) = [[" ".join(c.split()) for c in row[1:]] for row in self.rows if row[:1] == [title]]
        return cells


def test_figures_are_in_the_columns_of_their_areas() -> None:
    facts = make_facts()
    facts["tsr"]["areas"]["region"] = area(stroma_percentage=figure(12.34))
    page = Page(summary.render(facts, {}))
    assert page.row("") == ["Region", "Whole tissue", "Hot spot"]
    assert page.row("Class") == [
        "stroma-low (99 % of resamples agree)",
        "stroma-low (99 % of resamples agree)",
        "not evaluable: no field has tumor at its four sides",
    ]
    assert page.row("Stroma percentage") == ["12.3 %", "41.4 % (35.0 to 47.1)", "–"]
    assert page.row("Tumor-to-stroma ratio (TSR)")[1] == "1.42 (1.12 to 1.85)"
    assert page.row("… corrected for the model's errors")[1:] == [
        "40.0 % (30.1 to 50.0) (82 % of draws agree on the class, from 9 sources)",
        "– not evaluable",
    ]
    assert page.row("Label stroma")[0] == "6.25 mm² (500 tiles)"


def test_slide_model_and_tissue_are_shown() -> None:
    page = Page(summary.render(make_facts(), {}))
    assert page.row("Size") == ["40000 × 30000 pixels (10.0 × 7.5 mm)"]
    assert page.row("µm/px") == ["0.2501 (aperio.MPP)"]
    assert page.row("Labels") == ["tumor ≥ 0.5, stroma ≥ 0.35"]
    assert page.row("Analyzed tissue") == ["15.9 mm², 1234 tiles"]
    assert [page.row(f"Excluded: {kind}")[0] for kind in ("pen", "blur", "fold")] == ["0.0123 mm²", "0 mm²", "1.50 mm²"]
    assert "Research use only. Not for diagnosis." in page.text
    assert "HCC (Lv et al. 2015)" in page.text
    assert page.text.count("whole tissue: 9 blocks hold tumor or stroma") == 1
    assert "hot spot: not evaluable" not in page.text  # the table shows its reason


def test_a_missing_end_and_its_reason_are_shown() -> None:
    facts = make_facts()
    facts["tsr"]["areas"]["whole tissue"] = area(tsr=figure(3.0, 1.0, None, "no upper end: resamples without stroma"))
    page = Page(summary.render(facts, {}))
    assert page.row("Tumor-to-stroma ratio (TSR)")[0] == "3.00 (1.00 to unbounded)"
    assert "whole tissue: no upper end: resamples without stroma" in page.text


def test_a_reason_is_shown_once() -> None:
    facts = make_facts()
    few = "no interval: 2 blocks hold tumor or stroma"
    facts["tsr"]["areas"]["whole tissue"] = area(
        stroma_percentage=figure(40.0, reason=few), tsr=figure(1.5, reason=few)
    )
    assert Page(summary.render(facts, {})).text.count(few) == 1


def test_a_model_without_tumor_and_stroma_has_a_page() -> None:
    facts = make_facts() | {"tsr": None}
    facts["model"]["thresholds"] = None
    page = Page(summary.render(facts, {}))
    assert "Not measured" in page.text
    assert page.row("Labels") == ["tumor, stroma (most probable)"]


def test_pictures_are_embedded_and_nothing_is_fetched(tmp_path: pathlib.Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((3, 4, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b.JPG"), np.zeros((3, 4, 3), np.uint8))
    text = summary.render(make_facts(), {"Labels": tmp_path / "a.png", "Probability": tmp_path / "b.JPG"})
    images = [attributes for tag, attributes in Page(text).tags if tag == "img"]
    assert [image["alt"] for image in images] == ["Labels", "Probability"]
    sources = [str(image["src"]) for image in images]
    assert sources[0] == f"data:image/png;base64,{base64.b64encode((tmp_path / 'a.png').read_bytes()).decode()}"
    assert sources[1].startswith("data:image/jpeg;base64,")
    tags = {tag for tag, _ in Page(text).tags}
    assert not tags & {"script", "link", "iframe"}
    assert not re.search(r"https?:|url\(|@import|src=\"(?!data:)", text)


def test_all_inserted_text_is_escaped(tmp_path: pathlib.Path) -> None:
    evil = "\"'><script>alert(1)</script>{{ 7 * 7 }}"

    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(one) for key, one in value.items()}
        if isinstance(value, list):
            return [spoil(one) for one in value]
        return evil if isinstance(value, str) and value != "evaluated" else value

    facts = spoil(copy.deepcopy(make_facts())) | {"warnings": [evil]}
    facts["model"] |= {"labels": [evil], "thresholds": {evil: 0.5}}
    facts["tsr"] |= {"labels": [evil]}
    facts["tissue"][evil] = 1.0
    for one in facts["tsr"]["areas"].values():
        one["labels"] = {evil: {"tiles": 1, "mm2": 1.0}}
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((3, 4, 3), np.uint8))
    page = Page(summary.render(facts, {evil: tmp_path / "a.png"}))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(evil) > 15
    assert "49" not in page.text


def test_a_missing_fact_is_an_error_and_keeps_the_old_page(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "summary.html"
    summary.write(path, make_facts(), {})
    before = path.read_bytes()
    facts = make_facts()
    del facts["slide"]["mpp_source"]
    with pytest.raises(jinja2.UndefinedError, match="mpp_source"):
        summary.write(path, facts, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
