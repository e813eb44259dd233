"""From results.json to plain text for the terminal."""

import json
from collections.abc import Mapping
from typing import Any

_HEAD = ("protocol", "protocol_id", "split_hash", "model", "pretrained", "checkpoint_step", "image_size", "data")
_DECIDED = ("accuracy", "balanced_accuracy", "recall", "specificity", "f1", "gmean")
_Row = tuple[str, str, str]


def table(results: Mapping[str, Any]) -> str:
    """A block for each split, with intervals, and the warnings at the foot."""
    lines = []
    for name in _HEAD:
        if results.get(name) is not None:
            value = results[name]
            if isinstance(value, Mapping):
                value = value.get("description", json.dumps(value))
            lines.append(f"{name:<16}{value if isinstance(value, str) else json.dumps(value)}")
    reported = results.get("reported") or {}
    for split, block in results["splits"].items():
        rows = _label_rows(block, reported) if "labels" in block else _class_rows(block)
        rows.insert(0, ("metric", "value", f"95 % interval over {block['resampled']}s"))
        width = max(len(row[0]) for row in rows)
        body = [f"  {name:<{width}}  {value:>7}  {interval}".rstrip() for name, value, interval in rows]
        lines += ["", f"{split}: {_counted(block)}", *body]
    warnings = [w for block in results["splits"].values() for w in block["warnings"]]
    if warnings:
        lines += ["", *(f"warning: {w}" for w in warnings)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _counted(block: Mapping[str, Any]) -> str:
    counted = [f"{block['n_images']} images"]
    for key in ("n_patients", "n_cases", "n_slides", "n_source_images"):
        if block.get(key) is not None:
            counted.append(f"{block[key]} {_words(key[2:])}")
    if "labels" in block:
        shares = {name: figures["n_positive"] for name, figures in block["labels"].items()}
    else:
        shares = block["classes"]
    return f"{', '.join(counted)} ({', '.join(f'{name} {count}' for name, count in shares.items())})"


def _class_rows(block: Mapping[str, Any]) -> list[_Row]:
    baseline, positive, image = block["majority_baseline"], block["positive"], block["image"]
    rows = [
        _row("accuracy", image["accuracy"]),
        _row(f"  always '{baseline['class']}'", {"value": baseline["accuracy"]}),
    ]
    # The patient's number stands beside the image's, always: the two tell different stories.
    for level in ("patient", "case"):
        for name, figure in block.get(level, {}).items():
            rows.append(_row(f"{level} {_words(name)}", figure, f"{level}s"))
    rows.append(_row("gmean", image["gmean"]))
    rows.append(_row(f"  always '{baseline['class']}'", {"value": baseline["gmean"]}))
    for name, figure in image.items():
        if name not in ("accuracy", "gmean"):
            of_positive = positive is not None and name in ("precision", "recall", "f1")
            rows.append(_row(f"{_words(name)} ({positive})" if of_positive else _words(name), figure))
    for label, figures in block["per_class"].items():
        rows += [_row(f"{label}: {_words(name)}", figure) for name, figure in figures.items()]
    if decided := block.get("decisions"):
        half, locked = decided["half"], decided["locked"]
        for name in _DECIDED:
            rows.append(_row(f"{_words(name)} at 0.5", half[name]))
            rows.append(_row(f"  at {locked['threshold']:.4f}, locked on validation", locked[name]))
    for value, figures in block.get("by_magnification", {}).items():
        for name in ("accuracy", "gmean"):
            rows.append(_row(f"at {value or '?'} ({figures['n_images']} images): {name}", figures[name]))
    return rows


def _label_rows(block: Mapping[str, Any], reported: Mapping[str, Any]) -> list[_Row]:
    rows = []
    for label, figures in block["labels"].items():
        rows.append((f"{label} (in {figures['n_positive']}, threshold {figures['threshold']:.3f})", "", ""))
        rows.append(_row("  accuracy", figures["accuracy"]))
        # A label in one image of a hundred is right 99 times by saying no: that stands beside, always.
        rows.append(_row(f"    always {figures['baseline']['answer']}", {"value": figures["baseline"]["accuracy"]}))
        paper = reported.get("label_accuracy", {}).get(label)
        if paper is not None:
            rows.append(("    reported", _number(paper), reported.get("source", "")))
        for name, figure in figures.items():
            if name != "accuracy" and isinstance(figure, Mapping) and "value" in figure:
                rows.append(_row(f"  {_words(name)}", figure))
    rows.append(("all labels", "", ""))
    rows += [_row(f"  {_words(name)}", figure) for name, figure in block["image"].items()]
    return rows


def _row(name: str, figure: Mapping[str, float | None], over: str | None = None) -> _Row:
    low, high = figure.get("low"), figure.get("high")
    interval = "" if low is None or high is None else f"[{low:.4f}, {high:.4f}]"
    return name, _number(figure["value"]), interval + (f" over {over}" if over and interval else "")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4f}"
