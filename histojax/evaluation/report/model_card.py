"""MODEL_CARD.md: a model card made from a run's report, in Markdown with the YAML front matter that model hubs read."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from histojax.evaluation import formatting
from histojax.evaluation.report import section_levels
from histojax.evaluation.report.html_templates import printable
from histojax.evaluation.report.report_json import USE

TAGS = ("histopathology", "histojax")
LIMITS = """\
The model was trained only on the images named above. It has not seen other scanners, stains, magnifications or
populations, and the results do not carry over to them.
"""
INTENDED = """\
Research on image classification methods, with images like those that the model was trained on. Not for diagnosis, not
for decisions about patients, and not for other images without an evaluation on them.
"""
UNSTATED = "not stated"
# Name in a report -> metric type in the front matter.
_CLASS_METRICS = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy", "precision": "precision", "recall": "recall",
    "f1": "f1", "gmean": "gmean", "auroc": "roc_auc", "average_precision": "average_precision", "brier": "brier_score",
    "ece": "expected_calibration_error",
}  # fmt: skip
_MULTILABEL_METRICS = {
    "accuracy": "accuracy", "subset_accuracy": "subset_accuracy", "f1_macro": "f1", "f1_micro": "f1",
    "auroc_macro": "roc_auc", "mean_average_precision": "mean_average_precision",
}  # fmt: skip
_Estimate = Mapping[str, float | None]


def card(source: Mapping[str, Any], config: Mapping[str, Any], licence: str = "") -> str:
    """Write the card of a run.

    Args:
      source: an entry of `sources` in `report_json.describe`, for a run.
      config: the run's.
      licence: of the weights, as hubs name it; empty: the card says that it is not stated.
    """
    name = str(source["facts"]["model"] or source["name"])
    block = source["splits"][source["split"]]
    warnings = [*source["facts"]["split_warnings"], *block["warnings"], *source["notes"]]
    lines = [
        f"# {code(name)}: {', '.join(map(code, source['classes']))}",
        "",
        f"**{USE}**",
        "",
        *_model_lines(source, config.get("data", {}), licence),
        *_provenance_lines(source),
        "",
        "## Intended use",
        "",
        INTENDED,
        "## Results",
        "",
        _results_intro(source, block),
        "",
        *_results_tables(source, block),
        "## Thresholds",
        "",
        *_thresholds_lines(source),
        "## Calibration",
        "",
        *_calibration_lines(source),
        "## Limits",
        "",
        LIMITS,
        *[f"* {text(warning)}" for warning in warnings],
    ]
    return front_matter(licence, "histojax", name, [_model_index_entry(source)]) + "\n".join(lines).rstrip() + "\n"


def front_matter(licence: str, library: str, name: str = "", results: Sequence[Mapping[str, Any]] = ()) -> str:
    """Write the YAML block at the head of a card.

    Args:
      licence: as hubs name it; empty: unknown.
      library: name of the library that loads the model.
      name: of the model, for its `model-index`.
      results: entries of the `model-index`, ready for JSON; without any there is no `model-index`.
    """
    fields: dict[str, Any] = {"license": licence or "unknown", "library_name": library}
    fields |= {"pipeline_tag": "image-classification", "tags": list(TAGS)}
    if results:
        fields["model-index"] = [{"name": printable(name), "results": list(results)}]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n\n"


def code(name: str) -> str:
    """Quote a user's name as inline code, so that Markdown does not interpret it."""
    return "`" + printable(name).replace("`", "'") + "`"


def text(words: str) -> str:
    """Escape a user's text, so that Markdown does not interpret it."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", printable(words))


def _estimate(estimate: _Estimate) -> str:
    return formatting.with_interval(estimate, undefined="undefined")


# --- Front matter -------------------------------------------------------------------------------------------


def _model_index_entry(source: Mapping[str, Any]) -> dict[str, Any]:
    facts, block = source["facts"], source["splits"][source["split"]]
    metrics = [(name, metric_type, block["image"][name]) for name, metric_type in _metric_types(source).items()]
    rate = block.get("patient", {}).get("recognition_rate")
    if rate is not None:
        metrics.append(("patient recognition_rate", "recognition_rate", rate))
    return {
        "task": {"type": "image-classification"},
        "dataset": {
            "name": printable(facts["data"] or UNSTATED),
            "type": "histopathology",
            "split": source["split"],
            "args": {"protocol": printable(facts["protocol"] or UNSTATED), "split_hash": facts["split_hash"]},
        },
        "metrics": [
            {"type": kind, "value": of["value"], "name": f"{name.replace('_', ' ')}{_interval_note(of, block)}"}
            for name, kind, of in metrics
            if of["value"] is not None
        ],
    }


def _interval_note(estimate: _Estimate, block: Mapping[str, Any]) -> str:
    low, high = (estimate[end] for end in ("low", "high"))
    if low is None or high is None:
        return ""
    return f" (95 % interval {low:.4f} to {high:.4f}, bootstrap over {block['resampled']}s)"


def _metric_types(source: Mapping[str, Any]) -> dict[str, str]:
    return _MULTILABEL_METRICS if source["kind"] == "labels" else _CLASS_METRICS


# --- Facts --------------------------------------------------------------------------------------------------


def _model_lines(source: Mapping[str, Any], data: Mapping[str, Any], licence: str) -> list[str]:
    size = source["facts"]["image_size"] or "?"
    kind = "labels, any number per image" if source["kind"] == "labels" else "classes, one per image"
    stain = source["facts"].get("stain_normalisation")
    normalisation = "".join(
        f", {words} {', '.join(f'{value:g}' for value in data[key])}"
        for key, words in (("mean", "mean"), ("std", "standard deviation"))
        if key in data
    )
    return [
        f"* {len(source['classes'])} {kind}: {', '.join(map(code, source['classes']))}.",
        f"* Input: {size}×{size} pixels, RGB{normalisation}.",
        *([f"* Stain normalisation: {text(stain)}."] if stain else []),
        f"* Licence: {code(licence) if licence else UNSTATED}.",
    ]


def _provenance_lines(source: Mapping[str, Any]) -> list[str]:
    facts = source["facts"]
    synthetic = " **The images are synthetic: no result says anything about tissue.**" if facts["synthetic"] else ""
    sides = ", ".join(f"{side} {row['n_images']}" for side, row in source["sides"]["sides"].items())
    protocol_id = f" ({code(facts['protocol_id'])})" if facts.get("protocol_id") else ""
    return [
        f"* Data: {text(facts['data'] or UNSTATED)}.{synthetic} Images per side: {sides}.",
        f"* Protocol: {text(facts['protocol'] or UNSTATED)}{protocol_id}; split hash {facts['split_hash'] or UNSTATED};"
        f" {_shared_sides(source)}.",
        f"* Initial weights: {text(facts['pretrained'] or UNSTATED)}.",
        f"* Checkpoint: step {facts['checkpoint_step'] or UNSTATED}; config hash {facts.get('config_hash', UNSTATED)}; "
        f"predictions hash {facts['predictions_hash']}; commit {facts.get('commit') or 'unknown'}.",
    ]


def _shared_sides(source: Mapping[str, Any]) -> str:
    """Say how many patients and cases are on several sides of the split."""
    if not source["sides"]["shared"]:
        return "patients unknown"
    shared = {key: count for key, count in source["sides"]["shared"].items() if count}
    plurals = {"patient_id": "patients", "case_id": "cases"}
    return (
        " and ".join(f"**{count} {plurals[key]} are on several sides**" for key, count in shared.items())
        or "no patient is on several sides"
    )


# --- Results ------------------------------------------------------------------------------------------------


def _results_intro(source: Mapping[str, Any], block: Mapping[str, Any]) -> str:
    patients = f" of {block['n_patients']} patients" if block.get("n_patients") else ""
    bootstrap = source["bootstrap"]
    return (
        f"{block['n_images']} images of split {code(source['split'])}{patients}. Intervals: 95 %, bootstrap over "
        f"{block['resampled']}s ({bootstrap['n_resamples']} resamples, seed {bootstrap['seed']})."
    )


def _results_tables(source: Mapping[str, Any], block: Mapping[str, Any]) -> list[str]:
    if source["kind"] == "labels":
        keys = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "auroc", "average_precision")
        rows = [[code(name), *(_estimate(of[key]) for key in keys)] for name, of in block["labels"].items()]
        overall = [[name.replace("_", " "), _estimate(block["image"][name])] for name in _MULTILABEL_METRICS]
        return [*_table(["label", *(k.replace("_", " ") for k in keys)], rows), *_table(["all labels", ""], overall)]
    levels = section_levels.shown_levels(source)
    names = list(dict.fromkeys(key for level in levels.values() for key in level["figures"]))
    rows = [
        [
            name.replace("_", " "),
            *(_estimate(of["figures"][name]) if name in of["figures"] else "" for of in levels.values()),
        ]
        for name in names
    ]
    baseline = block["majority_baseline"]
    accuracy = formatting.number(baseline["accuracy"])
    rows.insert(1, [f"always {code(baseline['class'])}", accuracy, *[""] * (len(levels) - 1)])
    if colours := source["colour_and_texture"]:
        for name in ("accuracy", "auroc"):
            cells = [_estimate(colours["image"][name]), *[""] * (len(levels) - 1)]
            rows.append([f"{colours['name']}: {name}", *cells])
    return _table(["", *(f"{name} level ({level['n']})" for name, level in levels.items())], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a Markdown table, followed by an empty line."""
    lines = [header, ["---"] * len(header), *rows]
    # A vertical bar in a name would end its cell, even inside code.
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


def _thresholds_lines(source: Mapping[str, Any]) -> list[str]:
    if not source["decisions"]:
        return ["None: the most probable class is predicted.", ""]
    if source["thresholds"] is None:
        return ["None is locked; 0.5 is used.", ""]
    keys = ("accuracy", "recall", "specificity", "f1")
    rows = [
        [code(entry["of"]), f"{point['threshold']:.4f}", point["name"], *(_estimate(point[key]) for key in keys)]
        for entry in source["decisions"]
        for point in entry["points"]
    ]
    origin = source["threshold_origin"]
    return [f"{origin[:1].upper()}{origin[1:]}.", "", *_table(["class or label", "threshold", "", *keys], rows)]


def _calibration_lines(source: Mapping[str, Any]) -> list[str]:
    rows = []
    for entry in source["calibration"]:
        for state, words in (("before", "as predicted"), ("after", "after temperature scaling")):
            if entry[state] is not None:
                scores = entry[state]["scores"]
                temperature = f"{entry['temperature']:.3f}" if state == "after" else ""
                words += ", worse" if state == "after" and entry["raises_ece"] else ""
                subject = code(entry["of"]) if entry["of"] else "predicted class"
                estimates = [_estimate(scores[key]) for key in ("ece", "brier", "log_loss")]
                rows.append([subject, words, temperature, *estimates])
    table = _table(["class or label", "", "temperature", "ECE", "Brier score", "log loss"], rows)
    return [*table, "The temperature is fitted on validation images. The model's own output is not scaled.", ""]
