import pytest
import yaml

from histojax.core.files import write_json
from histojax.evaluation import predictions
from histojax.evaluation.report import model_card, report_html, report_json, sources
from tests.helpers.prediction_tables import labels_table, with_faultless_validation, with_validation

SPEC = report_json.ReportSpec(resamples=20, seed=1)

RESULTS = {
    "protocol": "case-disjoint, 25% test, seed 0",
    "split_hash": "0123456789abcdef",
    "model": "dala_resnet50",
    "image_size": 64,
    "splits": {},
    "checkpoint_step": 80,
    "pretrained": "none: trained from random initial weights",
    "data": {"description": "BreakHis images of /home/me/secret/BreaKHis_v1, 100X: 180 images", "synthetic": False},
}
CONFIG = {"seed": 1, "data": {"root": "/home/me/secret/BreaKHis_v1", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}}


def card(table, tmp_path, licence="", results_head=RESULTS):
    predictions.write(table, tmp_path / "run" / "predictions")
    write_json(tmp_path / "run" / "results.json", results_head)
    write_json(tmp_path / "run" / "config.json", CONFIG)
    source = sources.read(tmp_path / "run")
    assert source.is_run
    found = report_json.describe([source], SPEC)["sources"][0]
    text = model_card.card(found, source.config, licence)
    head, _, body = text.removeprefix("---\n").partition("---\n")
    return found, yaml.safe_load(head), body


@pytest.mark.parametrize("table", [with_validation(2), with_validation(3), labels_table()], ids=["2", "3", "labels"])
def test_a_card_states_the_required_facts(table, tmp_path):
    found, head, body = card(table, tmp_path, "apache-2.0")
    assert (head["license"], head["library_name"]) == ("apache-2.0", "histojax")
    entry = head["model-index"][0]
    assert entry["name"] == "dala_resnet50"
    result = entry["results"][0]
    assert result["dataset"]["args"] == {"protocol": RESULTS["protocol"], "split_hash": RESULTS["split_hash"]}
    figure = found["splits"]["test"]["image"]["accuracy"]
    accuracy = result["metrics"][0]
    assert (accuracy["type"], accuracy["value"]) == ("accuracy", figure["value"])
    assert f"95 % interval {figure['low']:.4f} to {figure['high']:.4f}, bootstrap over patients" in accuracy["name"]
    assert f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" in body
    for words in ("Research use only", "## Intended use", "## Limits", "## Thresholds", RESULTS["split_hash"]):
        assert words in body
    assert "/home/me" not in body
    assert "/home/me" not in str(head)
    assert "BreaKHis_v1, 100X" in result["dataset"]["name"]


def test_card_and_page_have_the_row_of_colour_and_texture_alone(tmp_path):
    row = {name: {"value": value, "low": 0.5, "high": 0.9} for name, value in (("accuracy", 0.612), ("auroc", 0.734))}
    beside = {"name": "colour and texture alone", "n_train": 9, "image": row, "patient": {}, "differences": {}}
    head = RESULTS | {"splits": {"test": {"colour_and_texture": beside}}}
    found, _, body = card(with_validation(), tmp_path, results_head=head)
    assert "| colour and texture alone: auroc | 0.734 [0.500, 0.900] |" in body
    assert "| colour and texture alone: accuracy | 0.612 [0.500, 0.900] |" in body
    pictures = [({}, "")]
    page = report_html.render({"use": "", "sources": [found], "comparisons": []}, pictures, "0")
    assert page.count("colour and texture alone</th>") == 2
    assert "0.734" in page
    assert "colour and texture alone" not in card(with_validation(), tmp_path)[2]


def test_a_card_marks_a_temperature_that_makes_the_ece_worse(tmp_path):
    _, _, body = card(with_faultless_validation(with_validation()), tmp_path)
    assert "after temperature scaling, worse | 0.050 |" in body
    _, _, body = card(with_validation(), tmp_path)
    assert "after temperature scaling |" in body


def test_hubs_can_read_a_card(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    predictions.write(with_validation(), tmp_path / "run" / "predictions")
    _, head, body = card(with_validation(), tmp_path)
    loaded = hub.ModelCard(f"---\n{yaml.safe_dump(head)}---\n{body}")
    types = {result.metric_type for result in loaded.data.eval_results}
    assert {"accuracy", "roc_auc", "recognition_rate"} <= types
    assert loaded.data.license == "unknown"


def test_unknown_facts_are_not_stated(tmp_path):
    _, head, body = card(
        with_validation(), tmp_path, results_head={"protocol": None, "model": "m", "data": {}, "splits": {}}
    )
    assert "Licence: not stated." in body
    assert "Protocol: not stated; split hash not stated" in body
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "not stated"


def test_names_are_escaped(tmp_path):
    table = with_validation()
    name = "a|b`<i>"
    table["label"] = table["label"].replace("benign", name)
    table = table.rename(columns={"prob_benign": f"prob_{name}"})
    head = RESULTS | {"protocol": "a\n# forged <b>", "model": 'x: "y"\n- z', "pretrained": "*w*"}
    _, read, body = card(table, tmp_path, results_head=head)
    assert read["model-index"][0]["name"] == r'x: "y"\n- z'
    assert "\n# forged" not in body
    assert r"\<b\>" in body
    assert r"\*w\*" in body
    assert r"`a\|b'<i>`" in next(line for line in body.splitlines() if line.startswith("| always"))


def test_numbers_are_numbers_in_yaml():
    text = model_card.front_matter("", "histojax", "m", [{"a": 1e-05, "b": 0.5, "c": "yes", "d": "0123", "e": [1, 2]}])
    read = yaml.safe_load(text.strip("-\n"))["model-index"][0]["results"][0]
    assert read == {"a": 1e-05, "b": 0.5, "c": "yes", "d": "0123", "e": [1, 2]}


def test_a_card_says_that_images_are_synthetic(tmp_path):
    head = RESULTS | {"data": RESULTS["data"] | {"synthetic": True}}
    assert "The images are synthetic" in card(with_validation(), tmp_path, results_head=head)[2]
