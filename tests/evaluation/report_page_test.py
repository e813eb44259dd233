import base64
import html.parser
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from histojax.evaluation import predictions
from histojax.evaluation.report import html_templates, plots, report_html, report_json, sources
from tests.helpers.prediction_tables import class_table, labels_table, with_validation

SPEC = report_json.ReportSpec(resamples=20, seed=1)

VOID = {"meta", "img", "br", "link", "hr", "input"}
EVIL = [
    "<script>alert(1)</script>",
    'x" onerror="y',
    "\u202egnp.exe",
    "a\nb",
    "{{ 7*7 }}",
    "$\\frac{1}{2}$",
    "_é & 漢字",
]


class Checker(html.parser.HTMLParser):
    """Checks that tags are closed in order, and collects the targets of images and links."""

    def __init__(self, page):
        super().__init__()
        self.open, self.links, self.tags, self.ids, self.text = [], [], set(), [], ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            assert not name.startswith("on"), name
            if name in ("src", "href"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data


def rendered(tmp_path, *tables, thumbnails=None):
    models = []
    for i, table in enumerate(tables):
        predictions.write(table, tmp_path / f"model_{i}")
        models.append(sources.read(tmp_path / f"model_{i}.parquet"))
    found = report_json.describe(models, SPEC)
    page = report_html.render(
        found, [(thumbnails or {}, "" if thumbnails else "none were found")] * len(models), "1.2.3"
    )
    check = Checker(page)
    assert not check.tags & {"script", "link", "iframe", "object", "form"}
    assert all(link.startswith(("data:image/", "#")) for link in check.links)
    assert not re.search(r"https?://|url\(", page)
    assert page.count("Research use only") >= 2
    for link in check.links:
        if link.startswith("data:image/svg+xml;base64,"):
            ElementTree.fromstring(base64.b64decode(link.partition(",")[2]))  # well-formed
        elif link.startswith("#"):
            assert link[1:] in check.ids
    return found, page, check


@pytest.mark.parametrize("k", [2, 4])
def test_a_page_of_classes(k, tmp_path):
    found, page, check = rendered(tmp_path, with_validation(k))
    for title in ("Metrics", "Confusion matrices", "Curves", "Calibration", "By magnification", "Patients", "Cases",
                  "Worst errors", "Split", "Provenance", "Definitions"):  # fmt: skip
        assert f">{title}<" in page, title
    assert ("At 0.5 and at the locked threshold" in page) == (k == 2)
    accuracy = found["sources"][0]["splits"]["test"]["image"]["accuracy"]
    told = f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
    assert told in " ".join(check.text.split())
    assert "Thumbnails: none were found" in check.text


def test_a_page_of_several_labels_and_sources(tmp_path):
    _, page, check = rendered(tmp_path, labels_table(), labels_table(seed=0))
    assert "Labels together" in check.text
    assert "model_1 against model_0" in check.text
    assert "Obuchowski" in check.text
    assert page.count("<h3>Calibration</h3>") == 2


def test_a_page_says_why_sources_are_not_compared(tmp_path):
    other = with_validation()
    other["image_id"] = "other " + other["image_id"]
    _, _, check = rendered(tmp_path, with_validation(), other)
    assert "Not compared: no image_id is in both tables" in check.text


def test_minimal_tables(tmp_path):
    # One class, one image, no patient: everything is undefined, and nothing breaks.
    p = np.array([[0.3, 0.7]])
    alone = predictions.make_table(["a"], [1], p, ["x", "y"], split="test")
    _, _, check = rendered(tmp_path, alone)
    assert "undefined" in check.text
    assert "No image is classified wrongly" in check.text
    assert "unknown" in check.text
    rendered(tmp_path, predictions.make_table(["a"], np.array([[1, 0]]), p, ["x", "y"], split="test"))


def test_names_do_no_harm(tmp_path):
    table = class_table(k=len(EVIL), n=140)
    names = {f"c{i}": name for i, name in enumerate(EVIL)}
    table["label"] = table["label"].map(names)
    table = table.rename(columns={f"prob_{c}": f"prob_{name}" for c, name in names.items()})
    table["patient_id"] = [f"<b>{EVIL[i % 7]}{i % 14}" for i in range(140)]
    table["magnification"] = table["subtype"] = [EVIL[i % 7] for i in range(140)]
    table["image_id"] = [f"<img src=x onerror=alert({i})>" for i in range(140)]
    found, page, _ = rendered(tmp_path, table)
    assert not re.search(r"<script|<b><|<img src=x|>49<|\u202e", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert r"\u202egnp.exe" in page
    assert "漢字" in page
    drawn = plots.curves_svg(found["sources"][0]["levels"]["image"]["curves"]).decode()
    assert "&lt;script&gt;" in drawn
    assert "<script" not in drawn
    texts = [node.text for node in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert any("$\\frac{1}{2}$" in (text or "") for text in texts)  # no formula
    assert "\u202e" not in drawn


def test_thumbnails_are_shown_with_their_errors(tmp_path):
    table = with_validation()
    predictions.write(table, tmp_path / "table")
    worst = report_json.describe([sources.read(tmp_path / "table.csv")], SPEC)["sources"][0]["worst"]["rows"]
    _, page, _ = rendered(tmp_path, table, thumbnails={worst[1]["image_id"]: b"JPEG bytes"})
    data = html_templates.inline(b"JPEG bytes", "image/jpeg")
    assert page.count(data) == 1
    assert re.search(re.escape(data) + r'"[^<]*>\s*<figcaption>' + worst[1]["image_id"] + "<", page)


def test_plots_are_reproducible(tmp_path):
    found, _, _ = rendered(tmp_path, with_validation())
    entry = found["sources"][0]["calibration"][0]
    assert plots.reliability_svg(entry) == plots.reliability_svg(entry)
    assert b"at temperature" in plots.reliability_svg(entry)
    undefined = {"x": {"roc": None, "precision_recall": None}}
    assert plots.curves_svg(undefined) is None
    assert plots.training_svg({}) is None
    series = {"step": [1, 2], "value": [0.5, 0.25]}
    assert b"train: loss" in plots.training_svg({"train/loss": series, "val/loss": series})


def test_few_patients_are_marked(tmp_path):
    table = pd.concat([class_table(n=60), class_table(n=1, n_patients=1).assign(image_id="one", patient_id="lonely")])
    _, page, _ = rendered(tmp_path, predictions.normalise(table))
    assert re.search(r'lonely</th><td>benign</td><td class="n">1 <span class="i">few</span>', page)
    assert "1 have fewer than 5 images" in page
    # Every case has images of both classes, so only its recognition rate is defined.
    assert "Case level (5 cases)" in page
