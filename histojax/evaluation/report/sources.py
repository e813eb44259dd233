"""The sources of a report: a run's work directory, or a table of predictions from any program."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.core.directories import expand_user
from histojax.core.errors import RunError
from histojax.core.positive import positive_by_name
from histojax.evaluation import multilabel, predictions, results
from histojax.evaluation.metrics import Array
from histojax.evaluation.thresholds import DEFAULT, choose_thresholds

VALIDATION = ("val", "validation")
GIVEN = "--threshold"  # the origin of thresholds that the user gave
_RESTORE = "rerun the command that trained the run, which writes it again, or give only the table of predictions"


@dataclasses.dataclass(frozen=True)
class Source:
    """One model's predictions, and the records of its run; the records are empty for a table without a run.

    Attributes:
      name: by which the report refers to it.
      path: as given.
      table: valid table of predictions.
      positive: the positive class of two; None for other tables.
      thresholds: positive class or label -> threshold; None: there are none.
      threshold_origin: where they come from, for readers.
      results: content of `results.json`.
      run: content of `run.json`.
      config: content of `config.json`.
      curves: lines of `metrics.jsonl`.
      split: content of `split.csv`, or None.
    """

    name: str
    path: pathlib.Path
    table: pd.DataFrame
    positive: str | None
    thresholds: dict[str, float] | None
    threshold_origin: str
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    run: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    curves: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    split: pd.DataFrame | None = None

    @property
    def classes(self) -> list[str]:
        """Classes or labels, in order."""
        return predictions.class_names(self.table)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have any number of labels."""
        return predictions.is_multilabel(self.table)

    @property
    def scored(self) -> list[str]:
        """The classes or labels that are evaluated by their score: the positive class of two, else all."""
        return self.classes if self.positive is None else [self.positive]

    @property
    def is_run(self) -> bool:
        """Whether the source is a work directory of histojax."""
        return bool(self.results)

    @property
    def validation(self) -> pd.DataFrame:
        """The rows on which thresholds and temperatures may be chosen."""
        return self.table[self.table["split"].isin(VALIDATION)].reset_index(drop=True)

    @property
    def label_thresholds(self) -> dict[str, float]:
        """Label -> the threshold that decides; empty for exclusive classes."""
        return self.thresholds or dict.fromkeys(self.classes, DEFAULT) if self.multilabel else {}

    def tested(self, split: str = "") -> str:
        """Choose the split that a report is about.

        Args:
          split: name of the split; empty: `test`, else the only one that is neither training nor validation.

        Raises:
          RunError: the table does not have the split, or several come into question.
        """
        names: list[str] = sorted(self.table["split"].unique())
        if split:
            if split not in names:
                raise RunError(f"{self.path}: no split '{split}'; its table has {', '.join(names)}")
            return split
        if "test" in names:
            return "test"
        others = [name for name in names if name not in (*VALIDATION, "train")] or names
        if len(others) > 1:
            raise RunError(f"{self.path}: has the splits {', '.join(names)}; choose one with --split")
        return others[0]

    def labels_and_scores(self, rows: pd.DataFrame) -> dict[str, tuple[Array, Array]]:
        """Take, for each of `scored`, whether images are positive (n,) and their probabilities (n,)."""
        if self.multilabel:
            labels, scores = multilabel.arrays(rows, self.classes)
            return {name: (labels[:, i], scores[:, i]) for i, name in enumerate(self.classes)}
        true, scores = results.arrays(rows, self.classes)
        indices = {name: self.classes.index(name) for name in self.scored}
        return {name: (true == i, scores[:, i]) for name, i in indices.items()}


def read(
    path: str | os.PathLike[str],
    *,
    name: str = "",
    thresholds: Mapping[str, float] | None = None,
    rule: str = "youden",
    positive: str = "",
) -> Source:
    """Read a work directory (its table and records) or a table, .csv or .parquet.

    Args:
      path: of the directory or the table.
      name: by which the report refers to it; empty: the name of the folder or file.
      thresholds: positive class or label -> threshold; None: those that the run locked, else thresholds chosen by
        `rule` on validation rows, if there are any.
      rule: as in `thresholds.choose_thresholds`.
      positive: positive class of two; empty: `malignant` if it is one of them, else the second.

    Raises:
      RunError: a missing or damaged file, a table that cannot be evaluated, a threshold for an unknown class.
    """
    path = expand_user(path)
    is_directory = path.is_dir()
    file = _table_of_run(path) if is_directory else path
    table = _read_table(file)
    records = _read_records(path) if is_directory else {}
    classes, is_multilabel = predictions.class_names(table), predictions.is_multilabel(table)
    if positive and (is_multilabel or len(classes) != 2 or positive not in classes):
        raise RunError(
            f"--positive={positive}: the classes of {file} are {', '.join(classes)}; --positive names one of two"
        )
    chosen = None
    if not is_multilabel and len(classes) == 2:
        chosen = positive or positive_by_name(classes) or classes[1]
    name = name or (path.resolve().name if is_directory else path.stem)
    source = Source(name, path, table, positive=chosen, thresholds=None, threshold_origin="", **records)
    found, origin = _thresholds(source, thresholds, _locked_thresholds(source.results), rule)
    return dataclasses.replace(source, thresholds=found, threshold_origin=origin)


def names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Name sources by the shortest ends of their paths that differ; empty where two are the same."""
    full = [expand_user(path).resolve() for path in paths]
    parts = [(*path.parts[:-1], path.name if path.is_dir() else path.stem) for path in full]
    for n in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-n:]) for part in parts]
        if len(set(found)) == len(found):
            return found
    return []


def _table_of_run(run: pathlib.Path) -> pathlib.Path:
    for suffix in (".parquet", ".csv"):
        if (run / f"predictions{suffix}").is_file():
            return run / f"predictions{suffix}"
    raise RunError(
        f"{run}: has neither predictions.parquet nor predictions.csv; a run writes them at its end, and "
        "`histojax eval` writes them for a checkpoint"
    )


def _read_table(file: pathlib.Path) -> pd.DataFrame:
    try:
        return predictions.read(file)
    except FileNotFoundError:
        raise RunError(f"{file}: no such work directory or table of predictions (.csv, .parquet)") from None
    except OSError:
        raise
    except predictions.PredictionsError as error:
        raise RunError(f"{file}: {error}") from error
    except Exception as error:  # the Parquet and CSV readers raise many kinds of errors on damaged bytes
        raise RunError(f"{file}: not a table of predictions ({type(error).__name__}: {error})") from error


def _read_records(run: pathlib.Path) -> dict[str, Any]:
    """Read the records of a run, as fields of `Source`; none for a folder of another program."""
    summary = _read_json(run / "results.json")
    if not isinstance(summary.get("splits"), dict) or "protocol" not in summary:
        return {}
    return {
        "results": summary,
        "run": _read_json(run / "run.json"),
        "config": _read_json(run / "config.json"),
        "curves": _read_curves(run / "metrics.jsonl"),
        "split": _read_split(run / "split.csv"),
    }


def _thresholds(
    source: Source, given: Mapping[str, float] | None, locked: Mapping[str, float], rule: str
) -> tuple[dict[str, float] | None, str]:
    """Choose the thresholds of a source, and say where they come from."""
    names = source.classes if source.multilabel else [] if source.positive is None else [source.positive]
    if given:
        unknown = sorted(set(given) - set(names))
        if unknown:
            known = f"it has thresholds for {', '.join(names)}" if names else "more than two classes have no thresholds"
            raise RunError(f"--threshold for {', '.join(unknown)}: {source.path}: {known}")
        return {name: given.get(name, locked.get(name, DEFAULT)) for name in names}, GIVEN
    if names and set(names) <= set(locked):
        return {name: locked[name] for name in names}, "locked by the run on validation images"
    rows = source.validation
    if not names or not len(rows):
        return None, ""
    pairs = source.labels_and_scores(rows).values()
    labels, scores = (np.stack(columns, axis=1) for columns in zip(*pairs, strict=True))
    values = choose_thresholds(labels, scores, rule).tolist()
    rule_name = {"youden": "Youden's index", "f1": "greatest F1", "fixed": "0.5"}[rule]
    origin = f"chosen by this report on {len(rows)} validation images ({rule_name})"
    return dict(zip(names, values, strict=True)), origin


def _locked_thresholds(summary: Mapping[str, Any]) -> dict[str, float]:
    """Read the thresholds that results.json states: at its top, or for each label."""
    found = {name: float(value) for name, value in (summary.get("thresholds") or {}).items()}
    for block in summary.get("splits", {}).values():
        found |= {name: float(label["threshold"]) for name, label in block.get("labels", {}).items()}
    return found


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}): {_RESTORE}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: not a file that a run writes: {_RESTORE}")
    return content


def _read_curves(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl that hold a step, up to the first damaged one."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break  # the last line of a run that was killed
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def _read_split(path: pathlib.Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype=str, na_filter=False)
    except ValueError as error:  # pandas' own errors, and bytes that are not text
        raise RunError(f"{path}: damaged ({error}): {_RESTORE}") from error
    return table if {"image_id", "split", "label"} <= set(table.columns) else None
