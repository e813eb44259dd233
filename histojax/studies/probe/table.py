"""The results of a probe as text and as CSV."""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from histojax.core.files import atomic_write
from histojax.core.text_table import text_table
from histojax.evaluation import formatting
from histojax.studies.probe.probe import METRICS

_SHOWN = {
    "balanced_accuracy": "bal. acc.", "f1_macro": "macro F1", "gmean": "GMean", "iba": "IBA", "auroc": "AUROC",
    "patient_recognition_rate": "patients",
}  # fmt: skip
_COMPARED = ("auroc", "balanced_accuracy")  # the first one that every difference has is printed


def text(results: Mapping[str, Any]) -> str:
    """Lay out the results: per protocol, a line per row, and the difference of each row from the reference.

    Args:
      results: as `probe` returns them.
    """
    return "\n\n".join("\n".join(_study(study)) for study in results["studies"]) + "\n"


def _study(study: Mapping[str, Any]) -> list[str]:
    first, folds = study["rows"][0], study["folds"]
    tested = f"{first['n_images']} images, {first['n_patients'] or 'unknown'} patients"
    per_fold = f"; per fold {', '.join(str(fold['test']) for fold in folds)}" if len(folds) > 1 else ""
    lines = [
        f"protocol  {study['protocol']}: {_in_words(study['in_words'])}",
        f"tested    {tested}{per_fold}; 95 % intervals over {first['resampled']}s",
        "",
    ]
    metric = next((m for m in _COMPARED if all(_defined(d, m) for d in study["differences"])), "accuracy")
    shown = [name for name in _SHOWN if name in first["metrics"] and (name != "f1_macro" or len(study["classes"]) > 2)]
    title = _SHOWN.get(metric, metric)
    header = ["row", "accuracy", "", *(_SHOWN[name] for name in shown), f"{title} − reference's", ""]
    differences = {difference["row"]: difference for difference in study["differences"]}
    body = []
    for row in study["rows"]:
        difference = differences.get(row["name"])
        cells = _cells(row, shown, difference and difference["differences"].get(metric))
        body.append([*cells, _holm_p(difference)] if metric == "auroc" else cells)
    lines += text_table(
        [[*header, "p (Holm)"] if metric == "auroc" else header, *body], right=range(1, len(header) + 1)
    )
    lines += ["", f"reference: {study['reference']}"]
    if metric == "auroc":
        lines.append("p: DeLong's test over patients (Obuchowski 1997), adjusted for the number of rows")
    lines += [f"note: {note}" for note in study["notes"]]
    return lines + [f"warning: {warning}" for warning in study["warnings"]]


def _in_words(folds: Sequence[str]) -> str:
    """Return the description of the protocol; of several folds, the first one's and their number."""
    return folds[0] if len(folds) == 1 else f"{folds[0]}, and {len(folds) - 1} further folds"


def _defined(difference: Mapping[str, Any], metric: str) -> bool:
    estimate = difference["differences"].get(metric)
    return estimate is not None and estimate["value"] is not None


def _cells(row: Mapping[str, Any], shown: Sequence[str], difference: Mapping[str, Any] | None) -> list[str]:
    accuracy = row["metrics"]["accuracy"]
    cells = [row["name"], formatting.number(accuracy["value"]), formatting.interval(accuracy)]
    cells += [formatting.number(row["metrics"][name]["value"]) for name in shown]
    if difference is None:
        return [*cells, "", ""]
    value = difference["value"]
    return [*cells, "nan" if value is None else f"{value:+.3f}", formatting.interval(difference)]


def _holm_p(difference: Mapping[str, Any] | None) -> str:
    """Format the adjusted p value of a row's AUROC; empty for the reference, and where there is none."""
    tests = [] if difference is None else [t["clusters"] or t["images"] for t in difference["auroc_tests"].values()]
    found = [test["holm_p"] for test in tests if "holm_p" in test]
    return formatting.number(found[0]) if len(found) == 1 else ""


def write_csv(results: Mapping[str, Any], path: pathlib.Path) -> None:
    """Write one line per protocol and row: each metric with its interval, and its difference from the reference."""
    facts = ("protocol", "protocol_id", "row", "fraction", "n_images", "n_patients")
    parts = ("value", "low", "high")
    header = [*facts, *(f"{metric}_{part}" for metric in METRICS for part in parts)]
    header += [f"{metric}_difference_{part}" for metric in METRICS for part in parts]
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for study in results["studies"]:
            differences = {difference["row"]: difference["differences"] for difference in study["differences"]}
            for row in study["rows"]:
                cells = [study["protocol"], study["protocol_id"], row["name"], row["fraction"]]
                cells += [row["n_images"], row["n_patients"]]
                for estimates in (row["metrics"], differences.get(row["name"], {})):
                    cells += [estimates.get(metric, {}).get(part) for metric in METRICS for part in parts]
                writer.writerow(["" if cell is None else cell for cell in cells])
