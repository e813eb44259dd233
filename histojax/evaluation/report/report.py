"""From predictions to everything that a report says, as JSON; and every figure of it as a long table."""

import csv
import dataclasses
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.core.errors import RunError
from histojax.evaluation import calibration, comparison, curves, decisions, paired, predictions, results
from histojax.evaluation.metrics import Array
from histojax.evaluation.report import parts
from histojax.evaluation.report.inputs import GIVEN, VALIDATION, Source

USE = "Research use only. Not a medical device; not for diagnosis or treatment."
COLUMNS = ("source", "split", "level", "metric", "value", "low", "high")
_RESAMPLES = 2000
_LEAST_RESAMPLES = 200
_RANKED = 400_000_000  # images × scores × resamples that are sorted through: more take minutes


@dataclasses.dataclass(frozen=True)
class Spec:
    """How a report is made.

    Attributes:
      split: that it is about; empty: `Source.tested`.
      resamples: of every bootstrap; None: the run's, else 2,000; fewer for very large tables, which is then said.
      seed: of them; None: the run's, else 0.
      worst: how many of the worst errors are listed.
    """

    split: str = ""
    resamples: int | None = None
    seed: int | None = None
    worst: int = 24


def describe(sources: Sequence[Source], spec: Spec) -> dict[str, Any]:
    """What the report of these sources says: JSON-safe; `use`, `sources`, `comparisons`.

    Raises:
      RunError: a split that is not there, names that are not told apart.
    """
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise RunError(f"sources of one name ({', '.join(names)}): name them with --names")
    return {
        "use": USE,
        "sources": [_source(source, spec) for source in sources],
        "comparisons": _comparisons(sources, spec),
    }


# --- One source ---------------------------------------------------------------------------------------------


def _source(source: Source, spec: Spec) -> dict[str, Any]:
    split = source.tested(spec.split)
    # A resample of images is drawn by row number: the order must come from the images themselves.
    table = source.table.sort_values("image_id", ignore_index=True)
    rows = table[table["split"] == split].reset_index(drop=True)
    options, notes = _options(source, spec, len(table))
    if split in VALIDATION and source.thresholds is not None and source.threshold_origin != GIVEN:
        notes.append(f"The thresholds were chosen on split '{split}' itself: its figures at them are optimistic.")
    splits = results.summarise(
        table, positive=source.positive, thresholds=source.thresholds if source.multilabel else None, **options
    )
    out: dict[str, Any] = {
        "name": source.name,
        "kind": "labels" if source.multilabel else "classes",
        "classes": source.classes,
        "positive": source.positive,
        "split": split,
        "thresholds": source.thresholds,
        "threshold_origin": source.threshold_origin,
        "bootstrap": options,
        "facts": parts.facts(source),
        "splits": splits,
    }
    if source.multilabel:
        scored = {name: _label_of(rows, name) for name in source.classes}
        out["levels"] = {"image": {"unit": "image", "n": len(rows), "curves": _curves(scored, splits[split]["labels"])}}
        notes.append("An image may have several labels, so a patient has no one label: no figures at patient level.")
        out["coexistence"] = parts.coexistence(rows, source.classes, _cuts(source))
    else:
        true, probabilities = results.arrays(rows, source.classes)
        asked = source.classes if source.positive is None else [source.positive]
        scored = {name: _class_of(true, probabilities, source.classes.index(name)) for name in asked}
        out["levels"] = _levels(source, rows, splits[split], options, notes)
    out["decisions"] = _decisions(source, rows, scored, options)
    out["calibration"] = _calibration(source, rows, scored, options, notes)
    right = parts.right(source, rows, _cuts(source))
    out["by"] = {
        column: decisions.shares_by(rows, column, right, **options)
        for column in ("magnification", "subtype")
        if column in rows and rows[column].nunique() > 1
    }
    for column in ("patient", "case"):
        if f"{column}_id" in rows and (rows[f"{column}_id"] != "").any():
            out[f"{column}s"] = parts.groups(source, rows, f"{column}_id", right)
    out["worst"] = parts.worst(source, rows, _cuts(source), spec.worst)
    out["training"] = parts.training(source)
    out["sides"] = parts.sides(source)
    out["notes"] = notes
    return out


def _options(source: Source, spec: Spec, n_rows: int) -> tuple[dict[str, Any], list[str]]:
    """Resamples and seed of the bootstrap, and what is to be said of them."""
    configured = source.config.get("evaluation", {}).get("resamples", _RESAMPLES)
    wanted = spec.resamples if spec.resamples is not None else int(configured)
    seed = spec.seed if spec.seed is not None else int(source.config.get("seed", 0))
    scores = 1 if source.positive is not None else len(source.classes)
    affordable = max(_LEAST_RESAMPLES, _RANKED // (n_rows * scores))
    if wanted <= affordable or spec.resamples is not None:
        return {"n_resamples": wanted, "seed": seed}, []
    note = f"{affordable} resamples instead of {wanted}, because the table is large; --resamples sets their number."
    return {"n_resamples": affordable, "seed": seed}, [note]


def _class_of(true: Array, probabilities: Array, index: int) -> tuple[Array, Array]:
    return true == index, probabilities[:, index]


def _label_of(rows: pd.DataFrame, name: str) -> tuple[Array, Array]:
    there = rows[predictions.LABEL_PREFIX + name].to_numpy(dtype=bool)
    return there, rows[predictions.PREFIX + name].to_numpy(dtype=np.float64)


def _cuts(source: Source) -> dict[str, float]:
    """The threshold that decides, of each label."""
    return source.thresholds or dict.fromkeys(source.classes, 0.5) if source.multilabel else {}


def _curves(scored: Mapping[str, tuple[Array, Array]], figures: Mapping[str, Any]) -> dict[str, Any]:
    """ROC and precision-recall curves by class or label, thinned, with their areas."""
    out = {}
    for name, (there, scores) in scored.items():
        roc, precision = curves.roc(scores, there), curves.precision_recall(scores, there)
        out[name] = {
            "n_positive": int(there.sum()),
            "prevalence": float(there.mean()),
            "auroc": figures[name]["auroc"],
            "average_precision": figures[name]["average_precision"],
            "roc": None if roc is None else _points(roc),
            "precision_recall": None if precision is None else _points(precision),
        }
    return out


def _points(curve: curves.Curve) -> dict[str, list[float]]:
    few = curves.thinned(curve)
    return {"x": few.x.round(6).tolist(), "y": few.y.round(6).tolist()}


def _levels(
    source: Source, rows: pd.DataFrame, block: Mapping[str, Any], options: dict[str, Any], notes: list[str]
) -> dict[str, Any]:
    """Figures, confusion matrix and curves of images, and of patients and cases by their mean probabilities."""
    out = {"image": _level("image", rows, source, block)}
    for level in ("patient", "case"):
        column = f"{level}_id"
        if column not in rows or (rows[column] == "").any():
            continue
        groups = results.group_table(rows, column)
        one = groups[groups["label"] != ""]
        if len(one) < len(groups):
            notes.append(
                f"{len(groups) - len(one)} of {len(groups)} {level}s have images of several classes and stand in no "
                f"figure at {level} level but the recognition rate."
            )
        rates = {name: block[level][name] for name in ("recognition_rate", "majority_accuracy")}
        if not len(one):
            out[level] = {"unit": level, "n": len(groups), "figures": rates, "confusion_matrix": [], "curves": {}}
            continue
        table = predictions.make_table(
            one[column].tolist(),
            one["label"].tolist(),
            one[[predictions.PREFIX + name for name in source.classes]].to_numpy(),
            source.classes,
            split=str(rows["split"].iloc[0]),
            patient_id=one[column].tolist(),
        )
        summary = results.summarise(table, positive=source.positive, **options)
        found = _level(level, table, source, next(iter(summary.values())))
        found["figures"] |= rates
        out[level] = found
    return out


def _level(level: str, table: pd.DataFrame, source: Source, block: Mapping[str, Any]) -> dict[str, Any]:
    true, probabilities = results.arrays(table, source.classes)
    asked = source.classes if source.positive is None else [source.positive]
    areas = {source.positive: block["image"]} if source.positive is not None else block["per_class"]
    return {
        "unit": level,
        "n": len(table),
        "resampled": block["resampled"] if level == "image" else level,
        "n_by_class": block["classes"],
        "figures": dict(block["image"]),
        "per_class": block["per_class"],
        "confusion_matrix": block["confusion_matrix"],
        "curves": _curves({name: _class_of(true, probabilities, source.classes.index(name)) for name in asked}, areas),
    }


def _decisions(
    source: Source, rows: pd.DataFrame, scored: Mapping[str, tuple[Array, Array]], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """The positive class, or each label, at 0.5 and at its locked threshold."""
    if source.positive is None and not source.multilabel:
        return []
    out = []
    for name, (there, scores) in scored.items():
        points = [{"name": "0.5"} | decisions.at_threshold(rows, there, scores, 0.5, **options)]
        if source.thresholds is not None:
            cut = source.thresholds[name]
            points.append({"name": "locked"} | decisions.at_threshold(rows, there, scores, cut, **options))
        out.append({"of": name, "points": points})
    return out


def _calibration(
    source: Source, rows: pd.DataFrame, scored: Mapping[str, tuple[Array, Array]], options: dict[str, Any],
    notes: list[str],
) -> list[dict[str, Any]]:  # fmt: skip
    """Reliability and its scores, before and after temperature scaling fitted on validation rows, where there are."""
    fitted: pd.DataFrame | None = source.validation
    if fitted is None or not len(fitted) or fitted["split"].iloc[0] == rows["split"].iloc[0]:
        fitted = None
        notes.append("No validation rows beside those reported: no temperature was fitted.")
    out = []
    if source.multilabel:
        for name, (there, p) in scored.items():
            fit = None
            if fitted is not None:
                seen, q = _label_of(fitted, name)
                fit = calibration.fit_temperature(seen.astype(int), np.stack([1 - q, q], axis=1))
            states = [p] if fit is None else [p, calibration.sigmoid_at(p, fit)]
            out.append(
                {"of": name, "temperature": fit}
                | _states([_label_state(rows, there, state, options) for state in states])
            )
    else:
        true, probabilities = results.arrays(rows, source.classes)
        fit = None
        if fitted is not None:
            fit = calibration.fit_temperature(*results.arrays(fitted, source.classes))
        states = [probabilities] if fit is None else [probabilities, calibration.softmax_at(probabilities, fit)]
        index = None if source.positive is None else source.classes.index(source.positive)
        found = []
        for state in states:
            scores = calibration.scores_of_classes(rows, true, state, index, **options)
            bins = calibration.reliability(rows, state.max(1), state.argmax(1) == true, **options)
            found.append({"scores": scores, "bins": bins})
        out.append({"of": None, "temperature": fit} | _states(found))
        if index is not None:
            of_positive = [_label_state(rows, true == index, state[:, index], options) for state in states]
            out.append({"of": source.positive, "temperature": fit} | _states(of_positive))
    for entry in out:
        if entry["temperature"] in (calibration.LOWEST, calibration.HIGHEST):
            notes.append(
                f"The temperature of {entry['of'] or 'the predicted class'} ended at the edge of what is searched, "
                f"{entry['temperature']:g}: the {len(source.validation)} validation images do not bound it."
            )
    return out


def _label_state(rows: pd.DataFrame, there: Array, scores: Array, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "scores": calibration.scores_of_label(rows, there, scores, **options),
        "bins": calibration.reliability(rows, scores, there, **options),
    }


def _states(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"before": found[0], "after": found[1] if len(found) > 1 else None}


# --- Several sources ----------------------------------------------------------------------------------------


def _comparisons(sources: Sequence[Source], spec: Spec) -> list[dict[str, Any]]:
    """Every pair of sources that can be compared, and why another cannot."""
    out: list[dict[str, Any]] = []
    for first, second in itertools.combinations(sources, 2):
        pair: dict[str, Any] = {"first": first.name, "second": second.name, "refused": ""}
        pair["notes"] = parts.differing_facts(first, second)
        rows, other = (source.table[source.table["split"] == source.tested(spec.split)] for source in (first, second))
        options, said = _options(first, spec, len(rows) + len(other))
        try:
            pair |= comparison.compare(
                rows,
                other,
                positive=first.positive,
                thresholds=[first.thresholds, second.thresholds] if first.multilabel else (None, None),
                **options,
            )
        except RunError as error:
            pair["refused"] = str(error)
        pair["notes"] += said
        out.append(pair)
    _adjust([p["mcnemar"] for p in out if not p["refused"]], "mid_p")
    _adjust([{k: v["images"] for k, v in p["auroc"].items()} for p in out if not p["refused"]], "p")
    return out


def _adjust(families: Sequence[Mapping[str, dict[str, Any]]], key: str) -> None:
    """Adds Holm's p over all the tests of a kind that the report holds."""
    tests = [test for family in families for test in family.values() if test[key] is not None]
    for test, p in zip(tests, paired.holm([test[key] for test in tests]), strict=True):
        test["holm_p"] = p


# --- A long table -------------------------------------------------------------------------------------------


def metric_rows(report: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Every figure of `describe` as a row of COLUMNS; what a figure is of stands in brackets behind its metric."""
    for source in report["sources"]:
        name, tested = source["name"], source["split"]
        for split, block in source["splits"].items():
            for level in ("image", "patient", "case"):
                figures = block.get(level, {})
                if split == tested and level in source["levels"] and "figures" in source["levels"][level]:
                    figures = source["levels"][level]["figures"]
                yield from _figures(name, split, level, figures)
            for key in ("per_class", "labels", "by_magnification"):
                for of, figures in block.get(key, {}).items():
                    yield from _figures(name, split, "image", figures, of)
        for entry in source["decisions"]:
            for point in entry["points"]:
                of = f"{entry['of']} >= {point['threshold']:.6g}"
                yield from _figures(name, tested, "image", point, of)
        for entry in source["calibration"]:
            if entry["after"] is not None:
                of = f"{entry['of'] or 'predicted class'}, temperature {entry['temperature']:.6g}"
                yield from _figures(name, tested, "image", entry["after"]["scores"], of)
        for column, values in source["by"].items():
            for row in values:
                yield from _figures(name, tested, "image", row, f"{column} {row['value']}")
    for pair in report["comparisons"]:
        if not pair["refused"]:
            what = f"{pair['second']} - {pair['first']}"
            for metric, figure in pair["differences"].items():
                yield what, tested, "image", metric, *(figure[key] for key in ("value", "low", "high"))


def _figures(
    source: str, split: str, level: str, figures: Mapping[str, Any], of: str = ""
) -> Iterator[tuple[Any, ...]]:
    for metric, figure in figures.items():
        if isinstance(figure, Mapping) and {"value", "low", "high"} <= figure.keys():
            told = f"{metric}[{of}]" if of else metric
            yield source, split, level, told, figure["value"], figure["low"], figure["high"]


def metrics_csv(report: Mapping[str, Any]) -> str:
    """`metric_rows` as the text of a CSV file; what is undefined is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in metric_rows(report):
        writer.writerow(["" if cell is None or cell != cell else cell for cell in row])
    return text.getvalue()
