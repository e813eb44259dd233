"""The table of `histojax protocols` as text."""

import string
from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = ("protocol", "at", "folds", "images/patients", "accuracy", "pooled", "", "bal. acc.", "GMean", "patients")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a protocol and magnification: mean ± sd over folds, the interval of all folds together, the published."""
    common = {key: "; ".join(sorted({row[key] for row in rows})) for key in ("model", "pretrained")}
    lines = [f"{key:<12}{value}" for key, value in common.items()]
    lines += [f"{'data':<12}{value}" for value in dict.fromkeys(row["data"] for row in rows)]
    marks: dict[tuple[str, ...], str] = {}
    body = [[*_HEAD, "always one class", "published"]]
    for row in rows:
        figures = row["figures"]
        pooled = figures["accuracy"]["pooled"]
        patients = figures.get("patient_recognition_rate")
        said = []
        for one in row["published"]:
            key = (one["model"], one["source"], one["protocol"], one["metric"])
            mark = marks.setdefault(key, (string.ascii_lowercase * 2)[len(marks)])
            said.append(f"{one['value']:.3f}" + (f" ± {one['sd']:.3f}" if one["sd"] else "") + f" [{mark}]")
        complete = row["n_folds"] == row["n_folds_wanted"]
        body.append(
            [
                row["protocol"],
                row["magnification"],
                f"{row['n_folds']}" if complete else f"{row['n_folds']} of {row['n_folds_wanted']}",
                f"{row['n_images']}/{'?' if row['n_patients'] is None else row['n_patients']}",
                _spread(figures["accuracy"]),
                number(pooled["value"]),
                interval(pooled),
                _spread(figures["balanced_accuracy"]),
                _spread(figures["gmean"]),
                _spread(patients) if patients else "",
                number(row["majority_baseline"]["accuracy"]),
                ", ".join(said) or "none",
            ]
        )
    over = sorted({row["resampled"] for row in rows})
    foot = [
        "Mean ± sd over folds; pooled: the accuracy over the test images of all folds together, with its 95 % interval "
        f"by bootstrap over {' or '.join(over)}s; patients: recognition rate."
    ]
    for (model, source, protocol, metric), mark in marks.items():
        foot.append(f"[{mark}] {model}: {metric}, {protocol}; {source}")
    if marks:
        foot.append(
            "Of case-disjoint splits nothing is published; beside them stands what is of patient-disjoint ones."
        )
    foot.append(f"Protocols: {', '.join(dict.fromkeys(row['protocol_id'] for row in rows))}")
    warned: dict[str, list[str]] = {}
    for row in rows:
        for text in row["warnings"]:
            warned.setdefault(text, []).append(f"{row['protocol']} {row['magnification']}")
    foot += [f"warning: {text} ({', '.join(where)})" for text, where in warned.items()]
    return "\n".join([*lines, "", *columns(body), "", *foot]) + "\n"


def columns(body: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose cells stand below each other."""
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in body]


def number(value: float | None) -> str:
    """Three digits, nan for what is undefined."""
    return "nan" if value is None else f"{value:.3f}"


def interval(figure: Mapping[str, Any]) -> str:
    """The interval of a figure; empty where there is none."""
    return "" if figure.get("low") is None else f"[{figure['low']:.3f}, {figure['high']:.3f}]"


def _spread(figure: Mapping[str, Any]) -> str:
    undefined = sum(value is None for value in figure["folds"])
    spread = "" if figure["sd"] is None else f" ± {figure['sd']:.3f}"
    return number(figure["mean"]) + spread + (f" ({undefined} undefined)" if undefined else "")
