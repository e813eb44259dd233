"""The table of `histojax protocols` as text."""

import string
from collections.abc import Mapping, Sequence
from typing import Any

from histojax.core.text_table import text_table
from histojax.evaluation import formatting

_HEADER = (
    "protocol", "at", "folds", "images/patients", "accuracy", "pooled", "", "bal. acc.", "GMean", "patients",
    "always one class", "published",
)  # fmt: skip
_Publication = tuple[str, ...]  # model, source, protocol, metric


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format one line per protocol and magnification, with footnotes.

    A line has the mean ± sd over folds, the accuracy of all folds pooled with its interval, and published results.

    Args:
      rows: `rows` of protocols.json.
    """
    shared = {key: "; ".join(sorted({row[key] for row in rows})) for key in ("model", "pretrained")}
    lines = [f"{key:<12}{value}" for key, value in shared.items()]
    lines += [f"{'data':<12}{value}" for value in dict.fromkeys(row["data"] for row in rows)]
    marks = _footnote_marks(rows)
    body = text_table([_HEADER, *(_cells(row, marks) for row in rows)])
    return "\n".join([*lines, "", *body, "", *_footnotes(rows, marks)]) + "\n"


def _publication(result: Mapping[str, Any]) -> _Publication:
    return tuple(result[key] for key in ("model", "source", "protocol", "metric"))


def _footnote_marks(rows: Sequence[Mapping[str, Any]]) -> dict[_Publication, str]:
    """Assign a letter to each publication, in the order of the table."""
    publications = dict.fromkeys(_publication(result) for row in rows for result in row["published"])
    letters = string.ascii_lowercase * 2
    return {publication: letters[i] for i, publication in enumerate(publications)}


def _cells(row: Mapping[str, Any], marks: Mapping[_Publication, str]) -> list[str]:
    """Format one row, in the order of `_HEADER`."""
    figures = row["figures"]
    pooled, patients = figures["accuracy"]["pooled"], figures.get("patient_recognition_rate")
    published = [
        _with_sd(result["value"], result["sd"] or None) + f" [{marks[_publication(result)]}]"
        for result in row["published"]
    ]
    complete = row["n_folds"] == row["n_folds_wanted"]
    return [
        row["protocol"],
        row["magnification"],
        f"{row['n_folds']}" if complete else f"{row['n_folds']} of {row['n_folds_wanted']}",
        f"{row['n_images']}/{'?' if row['n_patients'] is None else row['n_patients']}",
        _spread(figures["accuracy"]),
        formatting.number(pooled["value"]),
        formatting.interval(pooled),
        _spread(figures["balanced_accuracy"]),
        _spread(figures["gmean"]),
        _spread(patients) if patients else "",
        formatting.number(row["majority_baseline"]["accuracy"]),
        ", ".join(published) or "none",
    ]


def _footnotes(rows: Sequence[Mapping[str, Any]], marks: Mapping[_Publication, str]) -> list[str]:
    units = sorted({row["resampled"] for row in rows})
    notes = [
        "Mean ± sd over folds. pooled: the accuracy over the test images of all folds together, with its 95 % "
        f"bootstrap interval over {' or '.join(units)}s. patients: recognition rate."
    ]
    for (model, source, protocol, metric), mark in marks.items():
        notes.append(f"[{mark}] {model}: {metric}, {protocol}; {source}")
    if marks:
        notes.append(
            "No results are published for case-disjoint splits; results for patient-disjoint splits are shown instead."
        )
    notes.append(f"Protocols: {', '.join(dict.fromkeys(row['protocol_id'] for row in rows))}")
    rows_by_warning: dict[str, list[str]] = {}
    for row in rows:
        for text in row["warnings"]:
            rows_by_warning.setdefault(text, []).append(f"{row['protocol']} {row['magnification']}")
    return notes + [f"warning: {text} ({', '.join(names)})" for text, names in rows_by_warning.items()]


def _spread(figure: Mapping[str, Any]) -> str:
    """Format mean ± sd over folds, with the number of folds on which the metric is undefined."""
    undefined = sum(value is None for value in figure["folds"])
    return _with_sd(figure["mean"], figure["sd"]) + (f" ({undefined} undefined)" if undefined else "")


def _with_sd(mean: float | None, sd: float | None) -> str:
    return formatting.number(mean) + ("" if sd is None else f" ± {formatting.number(sd)}")
