"""The results of `histojax robustness` as text and as CSV."""

import csv
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from histojax.core.files import atomic_write
from histojax.core.text_table import text_table
from histojax.evaluation import formatting
from histojax.studies.robustness.curves import METRICS

HEADLINE = "balanced_accuracy"
_HEADER = ("shift", "bal. acc.", "", "change", "", "worst", "at", "AUROC", "ECE")
_PAIR_HEADER = ("shift", "bal. acc.", "", "AUROC", "", "ECE", "")


def text(results: Mapping[str, Any]) -> str:
    """Lay out the runs and their comparisons, the most important figures first."""
    blocks = [_run(run) for run in results["runs"]] + [_comparison(pair) for pair in results["comparisons"]]
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


def _run(run: Mapping[str, Any]) -> list[str]:
    tested = f"{run['n_images']} test images, {run['n_patients'] or 'unknown'} patients"
    mean, change, start = run["mean"][HEADLINE], run["change"][HEADLINE], run["unshifted"][HEADLINE]
    worst = [(shift, shift["worst"][HEADLINE]) for shift in run["shifts"] if shift["worst"][HEADLINE] is not None]
    lines = [
        f"== {run['name']}: {run['model']}, {run['protocol']}",
        f"balanced accuracy {formatting.with_interval(start)} as they are, {formatting.with_interval(mean)} over all "
        f"shifts, change {_signed(change)}",
    ]
    if worst:
        shift, point = min(worst, key=lambda pair: pair[1]["value"])
        lines.append(f"worst {formatting.with_interval(point)}: {shift['title']} {point['label']} ({shift['unit']})")
    lines += [f"{tested}; 95 % intervals over {run['resampled']}s; mean: area under the curve over its strengths", ""]
    lines += text_table([_HEADER, *(_cells(shift) for shift in run["shifts"])], right=range(1, len(_HEADER)))
    return lines + [f"note: {note}" for note in run["notes"]]


def _cells(shift: Mapping[str, Any]) -> list[str]:
    mean, change, worst = shift["mean"], shift["change"][HEADLINE], shift["worst"][HEADLINE]
    return [
        shift["title"],
        formatting.number(mean[HEADLINE]["value"]),
        formatting.interval(mean[HEADLINE]),
        "nan" if change["value"] is None else f"{change['value']:+.3f}",
        _signed_interval(change),
        "nan" if worst is None else formatting.number(worst["value"]),
        "" if worst is None else worst["label"],
        formatting.number(mean["auroc"]["value"]),
        formatting.number(mean["ece"]["value"]),
    ]


def _comparison(pair: Mapping[str, Any]) -> list[str]:
    title = f"== {pair['second']} − {pair['first']}"
    if pair["refused"]:
        return [title, f"not compared: {pair['refused']}"]
    lines = [
        title,
        f"{pair['n_images']} images that both tested, shifted in the same way; paired 95 % intervals over "
        f"{pair['resampled']}s",
        "",
    ]
    rows = [{"title": "mean over all", "mean": pair["mean"]}, *pair["shifts"]]
    cells = []
    for row in rows:
        found = [row["mean"][name] for name in (HEADLINE, "auroc", "ece")]
        values = ["nan" if one["value"] is None else f"{one['value']:+.3f}" for one in found]
        pairs = zip(values, map(_signed_interval, found), strict=True)
        cells.append([row["title"], *(cell for both in pairs for cell in both)])
    lines += text_table([_PAIR_HEADER, *cells], right=range(1, len(_PAIR_HEADER)))
    if pair["left_out"]:
        lines.append(f"note: not measured in the same way of both, and left out: {', '.join(pair['left_out'])}")
    return lines


def _signed(estimate: Mapping[str, Any]) -> str:
    value = estimate["value"]
    return "nan" if value is None else f"{value:+.3f} {_signed_interval(estimate)}".rstrip()


def _signed_interval(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["low"], estimate["high"]
    return "" if low is None or high is None else f"[{low:+.3f}, {high:+.3f}]"


def write_csv(results: Mapping[str, Any], path: pathlib.Path) -> None:
    """Write one line per run or comparison, shift, strength and metric; `mean` stands for a strength as well."""
    header = ["run", "shift", "kind", "unit", "strength", "label", "metric", "value", "low", "high"]
    header += ["change", "change_low", "change_high"]
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for run in results["runs"]:
            writer.writerows(_lines(run["name"], run))
        for pair in results["comparisons"]:
            if not pair["refused"]:
                writer.writerows(_lines(f"{pair['second']} − {pair['first']}", pair))


def _lines(name: str, entry: Mapping[str, Any]) -> Iterator[list[Any]]:
    for metric in METRICS:
        yield [name, "all", "", "", "mean", "mean", metric, *_parts(entry["mean"][metric], entry["change"][metric])]
    for shift in entry["shifts"]:
        head = [name, shift["name"], shift["kind"], shift["unit"]]
        for step in shift["strengths"]:
            for metric in METRICS:
                figures = _parts(step["metrics"][metric], step["changes"][metric])
                yield [*head, step["strength"], step["label"], metric, *figures]
        for metric in METRICS:
            yield [*head, "mean", "mean", metric, *_parts(shift["mean"][metric], shift["change"][metric])]


def _parts(*estimates: Mapping[str, Any]) -> list[Any]:
    values = [estimate[key] for estimate in estimates for key in ("value", "low", "high")]
    return ["" if value is None else value for value in values]
