"""A model card from a run's report: MODEL_CARD.md, Markdown behind a block of YAML as model hubs read it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from histojax.evaluation.report.pages import printable
from histojax.evaluation.report.report import USE

TAGS = ("histopathology", "histojax")
LIMITS = """\
Trained on the images named above only: other scanners, stains, magnifications and populations were not seen, and
figures measured there do not carry over.
"""
INTENDED = """\
Research on methods of image classification, on images of the kind that it was trained on. Not for diagnosis, not for
decisions about patients, and not for images of another kind without an evaluation on them.
"""
UNSTATED = "not stated"
# Name in a report -> what the block of YAML calls it and its type there.
_OF_CLASSES = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy", "precision": "precision", "recall": "recall",
    "f1": "f1", "gmean": "gmean", "auroc": "roc_auc", "average_precision": "average_precision", "brier": "brier_score",
    "ece": "expected_calibration_error",
}  # fmt: skip
_OF_LABELS = {
    "accuracy": "accuracy", "subset_accuracy": "subset_accuracy", "f1_macro": "f1", "f1_micro": "f1",
    "auroc_macro": "roc_auc", "mean_average_precision": "mean_average_precision",
}  # fmt: skip


def front_matter(licence: str, library: str, name: str = "", results: Sequence[Mapping[str, Any]] = ()) -> str:
    """The block of YAML at the head of a card.

    Args:
      licence: as hubs name it; empty: unknown.
      library: that loads the model.
      name: of the model, and `results`, entries of its `model-index`; without them there is none.
      results: JSON-able.
    """
    fields: dict[str, Any] = {"license": licence or "unknown", "library_name": library}
    fields |= {"pipeline_tag": "image-classification", "tags": list(TAGS)}
    if results:
        fields["model-index"] = [{"name": printable(name), "results": list(results)}]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n\n"


def card(source: Mapping[str, Any], config: Mapping[str, Any], licence: str = "") -> str:
    """The card of a run.

    Args:
      source: one of `report.describe`, of a run.
      config: the run's.
      licence: of the weights, as hubs name it; empty: said to be not stated.
    """
    facts, block = source["facts"], source["splits"][source["split"]]
    name = str(facts["model"] or source["name"])
    head = front_matter(licence, "histojax", name, [_result(source)])
    data, size = config.get("data", {}), facts["image_size"] or "?"
    synthetic = (
        " **The images are synthetic: no figure here says anything about tissue.**" if facts["synthetic"] else ""
    )
    named = f" ({code(facts['protocol_id'])})" if facts.get("protocol_id") else ""
    sides = ", ".join(f"{side} {row['n_images']}" for side, row in source["sides"]["sides"].items())
    thresholds = source["thresholds"]
    kind = "labels, any number an image" if source["kind"] == "labels" else "classes, one an image"
    normalised = "".join(
        f", {words} {', '.join(f'{value:g}' for value in data[key])}"
        for key, words in (("mean", "mean"), ("std", "standard deviation"))
        if key in data
    )
    lines = [
        f"# {code(name)}: {', '.join(map(code, source['classes']))}",
        "",
        f"**{USE}**",
        "",
        f"* {len(source['classes'])} {kind}: {', '.join(map(code, source['classes']))}.",
        f"* Input: {size}×{size} pixels, RGB{normalised}.",
        f"* Licence: {code(licence) if licence else UNSTATED}.",
        f"* Data: {text(facts['data'] or UNSTATED)}.{synthetic} Images by side: {sides}.",
        f"* Protocol: {text(facts['protocol'] or UNSTATED)}{named}; split hash {facts['split_hash'] or UNSTATED}; "
        f"{_shared(source)}.",
        f"* Initial weights: {text(facts['pretrained'] or UNSTATED)}.",
        f"* Checkpoint: step {facts['checkpoint_step'] or UNSTATED}; config hash {facts.get('config_hash', UNSTATED)}; "
        f"predictions hash {facts['predictions_hash']}; commit {facts.get('commit') or 'unknown'}.",
        "",
        "## Intended use",
        "",
        INTENDED,
        "## Results",
        "",
        f"{block['n_images']} images of split {code(source['split'])}"
        + (f" of {block['n_patients']} patients" if block.get("n_patients") else "")
        + f". Intervals: 95 %, bootstrap over {block['resampled']}s "
        f"({source['bootstrap']['n_resamples']} resamples, seed {source['bootstrap']['seed']}).",
        "",
        *_tables(source, block),
        "## Thresholds",
        "",
        *_thresholds(source, thresholds),
        "## Calibration",
        "",
        *_calibration(source),
        "## Limits",
        "",
        LIMITS,
        *[f"* {text(warning)}" for warning in [*facts["split_warnings"], *block["warnings"], *source["notes"]]],
    ]
    return head + "\n".join(lines).rstrip() + "\n"


def code(name: str) -> str:
    """A name of the user's as Markdown takes it for no markup."""
    return "`" + printable(name).replace("`", "'") + "`"


def text(words: str) -> str:
    """A text of the user's as Markdown takes it for no markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", printable(words))


def figure(of: Mapping[str, float | None]) -> str:
    """A figure with its interval."""
    value, low, high = of["value"], of["low"], of["high"]
    if value is None:
        return "undefined"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _result(source: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of `model-index`."""
    facts, block = source["facts"], source["splits"][source["split"]]
    figures = [(name, kind, block["image"][name]) for name, kind in _names(source).items()]
    figures += [
        (f"patient {name}", name, of) for name, of in block.get("patient", {}).items() if name == "recognition_rate"
    ]
    return {
        "task": {"type": "image-classification"},
        "dataset": {
            "name": printable(facts["data"] or UNSTATED),
            "type": "histopathology",
            "split": source["split"],
            "args": {"protocol": printable(facts["protocol"] or UNSTATED), "split_hash": facts["split_hash"]},
        },
        "metrics": [
            {"type": kind, "value": of["value"], "name": f"{name.replace('_', ' ')}{_interval(of, block)}"}
            for name, kind, of in figures
            if of["value"] is not None
        ],
    }


def _interval(of: Mapping[str, float | None], block: Mapping[str, Any]) -> str:
    low, high = of["low"], of["high"]
    if low is None or high is None:
        return ""
    return f" (95 % interval {low:.4f} to {high:.4f}, bootstrap over {block['resampled']}s)"


def _names(source: Mapping[str, Any]) -> dict[str, str]:
    return _OF_LABELS if source["kind"] == "labels" else _OF_CLASSES


def _shared(source: Mapping[str, Any]) -> str:
    shared = {key: count for key, count in source["sides"]["shared"].items() if count}
    if not source["sides"]["shared"]:
        return "patients unknown"
    words = {"patient_id": "patients", "case_id": "cases"}
    return (
        " and ".join(f"**{count} {words[key]} stand on several sides**" for key, count in shared.items())
        or "no patient stands on several sides"
    )


def _tables(source: Mapping[str, Any], block: Mapping[str, Any]) -> list[str]:
    if source["kind"] == "labels":
        keys = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "auroc", "average_precision")
        rows = [[code(name), *(figure(of[key]) for key in keys)] for name, of in block["labels"].items()]
        whole = [[name.replace("_", " "), figure(block["image"][name])] for name in _OF_LABELS]
        return [*_table(["label", *(k.replace("_", " ") for k in keys)], rows), *_table(["all labels", ""], whole)]
    levels = source["levels"]
    names = list(dict.fromkeys(key for level in levels.values() for key in level["figures"]))
    rows = [
        [
            name.replace("_", " "),
            *(figure(of["figures"][name]) if name in of["figures"] else "" for of in levels.values()),
        ]
        for name in names
    ]
    baseline = block["majority_baseline"]
    rows.insert(1, [f"always {code(baseline['class'])}", f"{baseline['accuracy']:.3f}", *[""] * (len(levels) - 1)])
    return _table(["", *(f"{name} level ({level['n']})" for name, level in levels.items())], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    # A vertical bar in a name would end its cell, inside code, too.
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


def _thresholds(source: Mapping[str, Any], thresholds: Mapping[str, float] | None) -> list[str]:
    if not source["decisions"]:
        return ["None: the most probable class is predicted.", ""]
    if thresholds is None:
        return ["None is locked; 0.5 is used.", ""]
    keys = ("accuracy", "recall", "specificity", "f1")
    rows = [
        [code(entry["of"]), f"{point['threshold']:.4f}", point["name"], *(figure(point[key]) for key in keys)]
        for entry in source["decisions"]
        for point in entry["points"]
    ]
    return [
        f"{source['threshold_origin'][:1].upper()}{source['threshold_origin'][1:]}.",
        "",
        *_table(["of", "threshold", "", *keys], rows),
    ]


def _calibration(source: Mapping[str, Any]) -> list[str]:
    rows = []
    for entry in source["calibration"]:
        for state, words in (("before", "as predicted"), ("after", "after temperature scaling")):
            if entry[state] is not None:
                scores = entry[state]["scores"]
                at = f"{entry['temperature']:.3f}" if state == "after" else ""
                of = code(entry["of"]) if entry["of"] else "predicted class"
                rows.append([of, words, at, *(figure(scores[key]) for key in ("ece", "brier", "log_loss"))])
    table = _table(["of", "", "temperature", "ECE", "Brier score", "log loss"], rows)
    return [*table, "The temperature is fitted on validation images; the model's own output is not scaled.", ""]
