"""The report shows the robustness of its own run, and of no other."""

import json
import pathlib
from typing import Any

import pytest

from histojax.evaluation import predictions
from histojax.evaluation.report import report_html, report_json, robustness_plots, sources
from tests.helpers.prediction_tables import class_table

NAMES = ("accuracy", "balanced_accuracy", "gmean", "auroc", "ece", "brier")
UNDEFINED = {"value": None, "low": None, "high": None}


def figures(value: float) -> dict[str, Any]:
    return {name: {"value": value, "low": value - 0.1, "high": value + 0.1} for name in NAMES}


def shift(name: str, title: str, values: dict[str, float]) -> dict[str, Any]:
    steps = [
        {"strength": i, "label": label, "metrics": figures(value), "changes": figures(value - 0.8)}
        for i, (label, value) in enumerate(values.items())
    ]
    worst = {m: {"strength": len(steps) - 1, "label": list(values)[-1], **steps[-1]["metrics"][m]} for m in NAMES}
    return {"name": name, "kind": name, "title": title, "unit": "of <it>", "strengths": steps, "worst": worst} | {
        "mean": figures(0.71), "change": figures(-0.09)
    }  # fmt: skip


def robustness(**facts: Any) -> dict[str, Any]:
    shifts = [shift("jpeg", "JPEG", {"none": 0.8, "50": 0.61}), shift("noise", "noise", {"0": 0.8, "8 %": 0.43})]
    run = {"name": "run", "split_hash": "abc", "checkpoint_step": 5, "resampled": "patient", "notes": ["a <note>"]}
    run |= {"unshifted": figures(0.8), "mean": figures(0.72), "change": figures(-0.08), "shifts": shifts}
    return {"runs": [run | facts], "comparisons": []}


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    predictions.write(class_table(), tmp_path / "predictions")
    facts = {"protocol": "p", "splits": {}, "split_hash": "abc", "checkpoint_step": 5}
    (tmp_path / "results.json").write_text(json.dumps(facts))
    (tmp_path / "robustness").mkdir()
    return tmp_path


def page(run: pathlib.Path, content: str) -> tuple[str, dict[str, Any]]:
    (run / "robustness" / "robustness.json").write_text(content)
    report = report_json.describe([sources.read(run)], report_json.ReportSpec(resamples=10))
    return report_html.render(report, [({}, "")], "1"), report["sources"][0]


def test_a_section_shows_the_shifts(run: pathlib.Path) -> None:
    html, described = page(run, json.dumps(robustness()))
    text = html[html.index("<h3>Robustness</h3>") :]
    text = " ".join(text[: text.index("<h3>Patients</h3>")].split())
    assert "Balanced accuracy 0.800 on the test images as they are, 0.720 over all shifts" in text
    assert 'The lowest is 0.430 <span class="i">[0.330, 0.530]</span>: noise, 8 % (of &lt;it&gt;).' in text
    assert text.count("data:image/svg+xml") == 3  # two shifts and their legend
    assert "a &lt;note&gt;" in text
    assert described["robustness"]["shifts"][0]["name"] == "jpeg"
    assert not any("robustness" in note for note in described["notes"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(robustness(checkpoint_step=6)), "is of another checkpoint or split, and not shown"),
        (json.dumps(robustness(split_hash="abd")), "is of another checkpoint or split, and not shown"),
        ('{"runs": [', "is damaged"),
        (json.dumps({"runs": [{}]}), "is damaged"),
        (json.dumps({"runs": robustness()["runs"] * 2}), "is damaged"),
    ],
)
def test_what_does_not_belong_to_the_run_is_not_shown(run: pathlib.Path, content: str, message: str) -> None:
    html, described = page(run, content)
    assert "<h3>Robustness</h3>" not in html
    assert described["robustness"] is None
    assert any(note.startswith("robustness/robustness.json") and message in note for note in described["notes"])


def test_curves_of_one_run_and_of_several(tmp_path: pathlib.Path) -> None:
    one, two = robustness()["runs"][0], robustness(name="an<other>")["runs"][0]
    two["shifts"][0]["strengths"][1]["metrics"] = dict.fromkeys(NAMES, UNDEFINED)
    names = [path.name for path in robustness_plots.write({"runs": [one]}, tmp_path)]
    assert names == ["curves.svg", "curves.png"]
    first = (tmp_path / "curves.svg").read_bytes()
    robustness_plots.write({"runs": [one]}, tmp_path)
    assert (tmp_path / "curves.svg").read_bytes() == first  # no time, no random names
    names = [path.name for path in robustness_plots.write({"runs": [one, two]}, tmp_path)]
    assert names == [f"curves_{m}.{s}" for m in ("balanced_accuracy", "auroc", "ece") for s in ("svg", "png")]
    assert b"an&lt;other&gt;" in (tmp_path / "curves_auroc.svg").read_bytes()
