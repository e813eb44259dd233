import base64
import html.parser
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from histojax.evaluation import predictions
from histojax.evaluation.report import html_templates, plots, report_html, report_json, sources
from tests.helpers.prediction_tables import (
    class_table,
    labels_table,
    with_faultless_validation,
    with_validation,
)

SPEC = report_json.ReportSpec(resamples=20, seed=1)

VOID = {"meta", "img", "br", "link", "hr", "input"}
EVIL = [
    "<script>alert(1)</script>",
    'x" onerror="y',
    "\u202egnp.exe",
    "a\nb",
    "{{ 70*70 }}",
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


@pytest.fixture(scope="module", params=[2, 4])
def of_classes(request, tmp_path_factory):
    """The number of classes, and what `rendered` returns."""
    return request.param, *rendered(tmp_path_factory.mktemp("page"), with_validation(request.param))


def test_a_page_of_classes(of_classes):
    k, found, page, check = of_classes
    for title in ("Metrics", "Confusion matrices", "Calibration", "By magnification", "Patients", "Cases",
                  "Worst errors", "Split", "Provenance", "Definitions"):  # fmt: skip
        assert f">{title}<" in page, title
    assert (">Curves<" in page) == (k == 4)  # those of patients and cases; the others stand beside the verdict
    assert ("At 0.5 and at the locked threshold" in page) == (k == 2)
    accuracy = found["sources"][0]["splits"]["test"]["image"]["accuracy"]
    told = f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
    assert told in " ".join(check.text.split())
    assert "Thumbnails: none were found" in check.text


def test_the_verdict_stands_above_everything(of_classes):
    _, found, page, _ = of_classes
    top = page[: page.index("<h3>Metrics")]
    block = found["sources"][0]["splits"]["test"]
    assert "Better than always answering" in top
    for key in ("accuracy", "balanced_accuracy", "auroc"):
        assert f"<b>{block['image'][key]['value']:.3f}</b>" in top
    assert f"<b>{block['patient']['recognition_rate']['value']:.3f}</b>" in top
    assert top.count("<b>0.") + top.count("<b>1.") == 4
    assert f">{block['confusion_matrix'][0][0]}<br>" in top
    assert [word for word in ("ROC", "Precision-recall") if f'alt="{word} curves"' in top] == [
        "ROC",
        "Precision-recall",
    ]
    assert "<h2>table_0" not in page  # a single source needs no heading of its own


def test_calibration_is_shown_once(of_classes):
    _, _, page, _ = of_classes
    body = page[: page.index("<h2>Definitions")]
    assert body.count(">Brier score<") == body.count("ECE (15 bins)") == body.count("predicted class</th>") == 1
    assert body.count('alt="Reliability diagram') == 2  # as predicted, and at the temperature


def test_cases_that_are_the_patients_are_folded(of_classes, tmp_path):
    k, other, page, _ = of_classes
    assert not other["sources"][0]["cases_are_patients"]
    assert re.search(r"Case level \(\d cases\)", page)
    table = with_validation(k)
    found, page, check = rendered(tmp_path, table.assign(case_id="c" + table["patient_id"]))
    assert "case" in found["sources"][0]["levels"]  # report.json keeps them
    assert "Every patient has one case" in check.text
    assert not re.search(r"Case level|<h3>Cases<", page)


def test_missing_p_values_and_bad_temperatures_have_their_reason(tmp_path):
    val = class_table(n=20, n_patients=4, split="val")
    val[["image_id", "patient_id"]] = "v" + val[["image_id", "patient_id"]]
    table = with_faultless_validation(predictions.normalise(pd.concat([class_table(n=40, n_patients=2), val])))
    _, page, check = rendered(tmp_path, table, table)
    assert "–: no p value for malignant, because only one patient has images that are positive" in check.text
    assert "–: χ² needs an image that only one of the sources gets right" in check.text
    assert page.count("at temperature 0.05<br><b>worse: do not use it</b>") == 2


def test_a_page_of_several_labels_and_sources(tmp_path):
    _, page, check = rendered(tmp_path, labels_table(), labels_table(seed=0))
    assert "Labels together" in check.text
    assert "model_1 against model_0" in check.text
    assert "Obuchowski" in check.text
    assert page.count("<h3>Calibration</h3>") == 2
    # Narrow screens scroll a table instead of breaking its words.
    assert page.count("<table") == page.count('<div class="scroll" tabindex="0"><table') > 5
    assert '<meta name="viewport" content="width=device-width' in page
    assert re.search(r"th:first-child { min-width: [\d.]+em", page)


def test_a_page_says_why_sources_are_not_compared(tmp_path):
    other = with_validation()
    other["image_id"] = "other " + other["image_id"]
    _, _, check = rendered(tmp_path, with_validation(), other)
    assert "Not compared: no image_id is in both tables" in check.text


def test_minimal_tables(tmp_path):
    # One class, one image, no patient: everything is undefined, and nothing breaks.
    p = np.array([[0.3, 0.7]])
    alone = predictions.make_table(["a"], [1], p, ["x", "y"], split="test")
    _, page, check = rendered(tmp_path, alone)
    assert re.search("AUROC<b>undefined</b><p[^<]*>no interval<br>a class or label has no images<", page)
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
    assert not re.search(r"<script|<b><|<img src=x|>4900<|\u202e", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert r"\u202egnp.exe" in page
    assert "漢字" in page
    drawn = plots.curves_svgs(found["sources"][0]["levels"]["image"]["curves"])[0].decode()
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


def test_plots_are_reproducible(of_classes):
    _, found, _, _ = of_classes
    entry = found["sources"][0]["calibration"][0]
    assert plots.reliability_svgs(entry) == plots.reliability_svgs(entry)
    assert b"at temperature" in plots.reliability_svgs(entry)[1]
    undefined = {"x": {"roc": None, "precision_recall": None}}
    assert plots.curves_svgs(undefined) == []
    assert plots.training_svgs({}) == []
    series = {"step": [1, 2], "value": [0.5, 0.25]}
    assert b"train: loss" in plots.training_svgs({"train/loss": series, "val/loss": series})[0]


def test_few_patients_are_marked(tmp_path):
    table = pd.concat([class_table(n=60), class_table(n=1, n_patients=1).assign(image_id="one", patient_id="lonely")])
    _, page, _ = rendered(tmp_path, predictions.normalise(table))
    assert re.search(r'lonely</th><td>benign</td><td class="n">1 <span class="i">few</span>', page)
    assert "1 have fewer than 5 images" in page
    # Every case has images of both classes, so only its recognition rate is defined.
    assert "Case level (5 cases)" in page
