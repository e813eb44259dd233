"""metrics.csv: every metric of a report as one long table."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

COLUMNS = ("source", "split", "level", "metric", "value", "low", "high")
Row = tuple[Any, ...]


def metrics_csv(report: Mapping[str, Any]) -> str:
    """Format the rows of `metric_rows` as CSV; an undefined number is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in metric_rows(report):
        writer.writerow(["" if cell is None or cell != cell else cell for cell in row])
    return text.getvalue()


def metric_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    """Yield every estimate of a report as a row of COLUMNS.

    A metric that belongs to a class, label, threshold or subgroup names it in brackets: `recall[benign]`.

    Args:
      report: as `report_json.describe` returns it.
    """
    for source in report["sources"]:
        yield from _split_rows(source)
        yield from _detail_rows(source)
    for pair in report["comparisons"]:
        if not pair["refused"]:
            split = report["sources"][-1]["split"]
            names = f"{pair['second']} - {pair['first']}"
            for metric, estimate in pair["differences"].items():
                yield names, split, "image", metric, *(estimate[key] for key in ("value", "low", "high"))


def _split_rows(source: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows of every split: image, patient and case level, classes, labels and magnifications."""
    name, tested = source["name"], source["split"]
    for split, block in source["splits"].items():
        for level in ("image", "patient", "case"):
            estimates = block.get(level, {})
            if split == tested and level in source["levels"] and "figures" in source["levels"][level]:
                estimates = source["levels"][level]["figures"]
            yield from _rows(name, split, level, estimates)
        for key in ("per_class", "labels", "by_magnification"):
            for subject, estimates in block.get(key, {}).items():
                yield from _rows(name, split, "image", estimates, subject)


def _detail_rows(source: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows that only the reported split has: thresholds, calibration, subgroups."""
    name, tested = source["name"], source["split"]
    for entry in source["decisions"]:
        for point in entry["points"]:
            yield from _rows(name, tested, "image", point, f"{entry['of']} >= {point['threshold']:.6g}")
    for entry in source["calibration"]:
        if entry["after"] is not None:
            subject = f"{entry['of'] or 'predicted class'}, temperature {entry['temperature']:.6g}"
            yield from _rows(name, tested, "image", entry["after"]["scores"], subject)
    for column, values in source["by"].items():
        for row in values:
            yield from _rows(name, tested, "image", row, f"{column} {row['value']}")


def _rows(source: str, split: str, level: str, estimates: Mapping[str, Any], subject: str = "") -> Iterator[Row]:
    for metric, estimate in estimates.items():
        if isinstance(estimate, Mapping) and {"value", "low", "high"} <= estimate.keys():
            named = f"{metric}[{subject}]" if subject else metric
            yield source, split, level, named, estimate["value"], estimate["low"], estimate["high"]
