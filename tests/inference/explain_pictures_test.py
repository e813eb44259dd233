"""Texts of overlays and contact sheets, and the true label of an image that is explained."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure

from histojax.inference.explain import pictures
from histojax.inference.explain.labels import true_label
from histojax.inference.predict.images import ImageRef


def drawn(write: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> tuple[Figure, list[str]]:
    """The figure that is drawn, and its texts, all of which must lie inside it."""
    figures: list[Figure] = []
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
        write()
    (figure,) = figures
    for text in figure.texts:
        box, edge = text.get_window_extent(), figure.bbox
        assert box.x0 >= edge.x0, text
        assert box.x1 <= edge.x1, text
    return figure, [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("shape", [(40, 50), (30, 700), (900, 20)])
def test_a_contact_sheet_cuts_no_title_and_has_labels_and_a_colour_bar(
    shape: tuple[int, int], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, values = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.float32)
    no_evidence = "no evidence for this class"
    picture = pictures.Picture(
        image, values, None, "scan_of_a_long_name_" * 3, "malignant: 0.002", no_evidence, "benign"
    )
    title = "DT Grad-CAM (percentile:99.5) of a_model_of_a_very_long_name, some/layer"
    figure, texts = drawn(
        lambda: pictures.write_contact_sheet(tmp_path / "sheet.png", [[picture], [picture]], title), monkeypatch
    )
    assert "".join(texts).count("scan_of_a_long_name_") == 6
    assert texts.count("true label: benign") == 2
    assert " ".join(texts).count(f"malignant: 0.002, {no_evidence}") == 2
    assert title in " ".join(texts)
    assert [axes.get_xlabel() for axes in figure.axes].count("Grad-CAM, fraction of its maximum") == 1


def test_an_overlay_names_the_true_label(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = pictures.Picture(
        np.zeros((900, 20, 3), np.uint8), np.zeros((900, 20), np.float32), None, "n" * 90, "a: 0.1", "remark", "benign"
    )
    _, texts = drawn(lambda: pictures.write_overlay(tmp_path / "a.png", picture), monkeypatch)
    assert " ".join(texts).endswith("true label: benign, remark")
    _, texts = drawn(
        lambda: pictures.write_overlay(tmp_path / "a.png", dataclasses.replace(picture, label="")), monkeypatch
    )
    assert "true label" not in " ".join(texts)


def test_a_name_of_many_lines_loses_its_middle() -> None:
    lines = pictures._fit("first" + "m" * 500 + "last", 1, 8)
    assert len(lines) == 3
    assert lines[0].startswith("first")
    assert lines[2].endswith("last")
    assert "…" in "".join(lines)


@pytest.mark.parametrize(
    ("path", "facts", "label"),
    [
        ("a/b.png", {"label": "stated"}, "stated"),
        ("set/tumor/b.png", {"label": ""}, "tumor"),
        ("set/tumor+stroma/b.png", {}, "tumor+stroma"),
        ("tumor/set/b.png", {}, ""),
        ("set/SOB_B_A-14-22549AB-100-001.png", {}, "benign"),
        ("b.png", {}, ""),
    ],
)
def test_the_true_label_is_stated_or_implied_by_a_name(path: str, facts: dict[str, str], label: str) -> None:
    classes = ("benign", "tumor", "stroma")
    assert true_label(ImageRef("x", path, "", facts), classes) == label
    if not facts:
        assert true_label(ImageRef("x", "archive.zip", path), classes) == label
