"""results.json as plain text: the most important numbers in ten lines, and the full table."""

import json
from collections.abc import Mapping
from typing import Any

from histojax.core.text_table import text_table
from histojax.evaluation import formatting

_HEAD = (
    "protocol",
    "protocol_id",
    "split_hash",
    "model",
    "pretrained",
    "checkpoint_step",
    "image_size",
    "stain",
    "data",
)
_AT_THRESHOLDS = ("accuracy", "balanced_accuracy", "recall", "specificity", "f1", "gmean")
_HEADLINE = {"balanced_accuracy": "balanced accuracy", "gmean": "GMean", "iba": "IBA", "auroc": "AUROC"}
_LABELS_HEADLINE = {
    "mean_average_precision": "mean average precision",
    "subset_accuracy": "subset accuracy",
    "f1_macro": "macro F1",
}
_PATIENT_LEVEL = {"recognition_rate": "patient recognition rate", "majority_accuracy": "patient majority vote"}
_DIGITS = 4
_Row = tuple[str, str, str]


def headline(results: Mapping[str, Any]) -> str:
    """Lay out the numbers that are read first, in about ten lines.

    Args:
      results: the content of results.json.

    Returns:
      Data, protocol and counts; the accuracy beside that of the majority class, with intervals; balanced accuracy,
      GMean, IBA, AUROC and the patient level. With several labels, the accuracy of each beside its baseline and, where
      known, the reported one. Metrics of the user's own follow. The test split's, or the last split's where there is
      none.
    """
    split = "test" if "test" in results["splits"] else list(results["splits"])[-1]
    block = results["splits"][split]
    lines = [f"{name:<10}{_head_value(results[name])}" for name in ("data", "protocol", "model") if results.get(name)]
    rows = _label_headline(block, results.get("reported") or {}) if "labels" in block else _class_headline(block)
    rows += [
        _row(_spaced(name), block["image"][name]) for name in results.get("own_metrics") or () if name in block["image"]
    ]
    lines.append(f"{split}: {_counts(block)}; 95 % intervals over {block['resampled']}s")
    lines += [f"  {line}" for line in text_table(rows, right=(1,))]
    lines += _colour_verdict(block)
    if any("reported: " in row[-1] for row in rows):
        lines.append(f"reported by {results['reported'].get('source', 'a paper')}")
    if warnings := sum(len(one["warnings"]) for one in results["splits"].values()):
        lines.append(f"{warnings} {'warning' if warnings == 1 else 'warnings'} at the end of the full table")
    return "\n".join(lines) + "\n"


def table(results: Mapping[str, Any]) -> str:
    """Lay out every number with its interval, split by split, and the warnings at the end.

    Args:
      results: the content of results.json, or a part of it with `splits`.
    """
    lines = [f"{name:<16}{_head_value(results[name])}" for name in _HEAD if results.get(name) is not None]
    reported = results.get("reported") or {}
    for split, block in results["splits"].items():
        rows = _label_rows(block, reported) if "labels" in block else _class_rows(block)
        rows.insert(0, ("metric", "value", f"95 % interval over {block['resampled']}s"))
        width = max(len(row[0]) for row in rows)
        body = [f"  {name:<{width}}  {value:>7}  {interval}".rstrip() for name, value, interval in rows]
        lines += ["", f"{split}: {_counts(block)}", *body]
    warnings = [warning for block in results["splits"].values() for warning in block["warnings"]]
    if warnings:
        lines += ["", *(f"warning: {warning}" for warning in warnings)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _head_value(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("description", json.dumps(value))
    return value if isinstance(value, str) else json.dumps(value)


def _counts(block: Mapping[str, Any]) -> str:
    counts = [f"{block['n_images']} images"]
    for key in ("n_patients", "n_cases", "n_slides", "n_source_images"):
        if block.get(key) is not None:
            counts.append(f"{block[key]} {_spaced(key[2:])}")
    if "labels" in block:
        images = {name: estimates["n_positive"] for name, estimates in block["labels"].items()}
    else:
        images = block["classes"]
    return f"{', '.join(counts)} ({', '.join(f'{name} {count}' for name, count in images.items())})"


def _class_headline(block: Mapping[str, Any]) -> list[_Row]:
    baseline, image = block["majority_baseline"], block["image"]
    name, value, interval = _row("accuracy", image["accuracy"])
    rows = [(name, value, f"{interval}  always '{baseline['class']}': {_number(baseline['accuracy'])}".lstrip())]
    rows += [_row(title, image[name]) for name, title in _HEADLINE.items() if name in image]
    rows += _colour_rows(block)
    # Always show the patient-level metric beside the image-level one: the two can differ widely.
    levels = block.get("patient", {})
    return rows + [_row(title, levels[name]) for name, title in _PATIENT_LEVEL.items() if name in levels]


def _colour_rows(block: Mapping[str, Any]) -> list[_Row]:
    """Lay out what colour and texture alone score, and how much higher the model's AUROC is."""
    if not (colours := block.get("colour_and_texture")):
        return []
    rows = [(f"{colours['name']}:", "", "")]
    rows += [
        _row(f"  {title}", colours["image"][name]) for name, title in (("accuracy", "accuracy"), ("auroc", "AUROC"))
    ]
    return [*rows, _row("  AUROC of the model − this", colours["differences"]["auroc"])]


def _colour_verdict(block: Mapping[str, Any]) -> list[str]:
    """Say in one sentence whether the model has shown that it sees more than colour and texture."""
    difference = block.get("colour_and_texture", {}).get("differences", {}).get("auroc", {})
    if difference.get("low") is None:
        return []
    if difference["low"] > 0:
        return [
            "On these images, the model sees more than colour and texture: the interval of that difference is above 0."
        ]
    return ["Nothing shows that the model sees more than colour and texture: that difference is not clearly above 0."]


def _label_headline(block: Mapping[str, Any], reported: Mapping[str, Any]) -> list[_Row]:
    rows = []
    for label, estimates in block["labels"].items():
        name, value, interval = _row(f"{label} accuracy", estimates["accuracy"])
        beside = f"always {estimates['baseline']['answer']}: {_number(estimates['baseline']['accuracy'])}"
        paper = reported.get("label_accuracy", {}).get(label)
        if paper is not None:
            beside += f"; reported: {_number(paper)}"
        rows.append((name, value, f"{interval}  {beside}".lstrip()))
    image = block["image"]
    return rows + [_row(title, image[name]) for name, title in _LABELS_HEADLINE.items() if name in image]


def _class_rows(block: Mapping[str, Any]) -> list[_Row]:
    baseline, positive, image = block["majority_baseline"], block["positive"], block["image"]
    rows = [
        _row("accuracy", image["accuracy"]),
        _row(f"  always '{baseline['class']}'", {"value": baseline["accuracy"]}),
    ]
    # Always show the patient-level metric beside the image-level one: the two can differ widely.
    for level in ("patient", "case"):
        for name, estimate in block.get(level, {}).items():
            rows.append(_row(f"{level} {_spaced(name)}", estimate, f"{level}s"))
    rows += _colour_rows(block)
    rows.append(_row("gmean", image["gmean"]))
    rows.append(_row(f"  always '{baseline['class']}'", {"value": baseline["gmean"]}))
    for name, estimate in image.items():
        if name not in ("accuracy", "gmean"):
            positive_only = positive is not None and name in ("precision", "recall", "f1")
            rows.append(_row(f"{_spaced(name)} ({positive})" if positive_only else _spaced(name), estimate))
    for label, estimates in block["per_class"].items():
        rows += [_row(f"{label}: {_spaced(name)}", estimate) for name, estimate in estimates.items()]
    rows += _threshold_rows(block)
    for value, estimates in block.get("by_magnification", {}).items():
        for name in ("accuracy", "gmean"):
            rows.append(_row(f"at {value or '?'} ({estimates['n_images']} images): {name}", estimates[name]))
    return rows


def _threshold_rows(block: Mapping[str, Any]) -> list[_Row]:
    """Put each metric at the threshold 0.5 above the same metric at the threshold locked on validation."""
    if not (decisions := block.get("decisions")):
        return []
    half, locked = decisions["half"], decisions["locked"]
    rows = []
    for name in _AT_THRESHOLDS:
        rows.append(_row(f"{_spaced(name)} at 0.5", half[name]))
        rows.append(_row(f"  at {locked['threshold']:.4f}, locked on validation", locked[name]))
    return rows


def _label_rows(block: Mapping[str, Any], reported: Mapping[str, Any]) -> list[_Row]:
    rows = []
    for label, estimates in block["labels"].items():
        rows.append((f"{label} (in {estimates['n_positive']}, threshold {estimates['threshold']:.3f})", "", ""))
        rows.append(_row("  accuracy", estimates["accuracy"]))
        # A label in one image of a hundred gets 99 % accuracy by always answering no, so show this baseline as well.
        baseline = estimates["baseline"]
        rows.append(_row(f"    always {baseline['answer']}", {"value": baseline["accuracy"]}))
        paper = reported.get("label_accuracy", {}).get(label)
        if paper is not None:
            rows.append(("    reported", _number(paper), reported.get("source", "")))
        for name, estimate in estimates.items():
            if name != "accuracy" and isinstance(estimate, Mapping) and "value" in estimate:
                rows.append(_row(f"  {_spaced(name)}", estimate))
    rows.append(("all labels", "", ""))
    rows += [_row(f"  {_spaced(name)}", estimate) for name, estimate in block["image"].items()]
    return rows


def _row(name: str, estimate: Mapping[str, float | None], over: str | None = None) -> _Row:
    interval = formatting.interval(estimate, _DIGITS)
    return name, _number(estimate["value"]), interval + (f" over {over}" if over and interval else "")


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float | None) -> str:
    return formatting.number(value, _DIGITS)
