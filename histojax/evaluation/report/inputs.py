"""What a report is made from: a run's work directory, or a table of predictions from anywhere."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from histojax.core.errors import RunError
from histojax.evaluation import multilabel, predictions

VALIDATION = ("val", "validation")
GIVEN = "--threshold"  # where a threshold comes from that the user gave
_POSITIVE = "malignant"


@dataclasses.dataclass(frozen=True)
class Source:
    """One model's predictions, and what its run says of itself; empty where there is no run.

    Attributes:
      name: by which the report calls it.
      path: as given.
      table: of predictions, valid.
      positive: the positive class of two; None for other tables.
      thresholds: by positive class or label; None: there are none.
      threshold_origin: where they come from, in words.
      results: `results.json`.
      run, config: `run.json`, `config.json`.
      curves: the lines of `metrics.jsonl`.
      split: `split.csv`, or None.
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
        """Whether an image may have several labels."""
        return predictions.is_multilabel(self.table)

    @property
    def is_run(self) -> bool:
        """Whether it is a work directory of ours."""
        return bool(self.results)

    @property
    def validation(self) -> pd.DataFrame:
        """The rows that thresholds and temperatures may be chosen on."""
        return self.table[self.table["split"].isin(VALIDATION)].reset_index(drop=True)

    def tested(self, split: str = "") -> str:
        """The split that a report is about: the named one, else `test`, else the only one that is no other's.

        Raises:
          RunError: the table does not have it, or it cannot be told.
        """
        there = sorted(self.table["split"].unique())
        if split:
            if split not in there:
                raise RunError(f"{self.path}: no split '{split}'; its table has {', '.join(there)}")
            return split
        if "test" in there:
            return "test"
        others = [name for name in there if name not in (*VALIDATION, "train")] or there
        if len(others) > 1:
            raise RunError(f"{self.path}: has the splits {', '.join(there)}: say with --split which one is reported")
        return others[0]


def read(
    path: str | os.PathLike[str],
    *,
    name: str = "",
    thresholds: Mapping[str, float] | None = None,
    rule: str = "youden",
    positive: str = "",
) -> Source:
    """Reads a work directory (of its table and what lies beside) or a table, .csv or .parquet.

    Args:
      path: of either.
      name: by which the report calls it; empty: the folder's or the file's.
      thresholds: by positive class or label; None: those that the run locked, else chosen by `rule` on validation
        rows, where there are some.
      rule: as in `multilabel.choose_thresholds`.
      positive: class of two; empty: `malignant` where it is one, else the second.

    Raises:
      RunError: nothing there, a table that cannot be evaluated, a threshold of an unknown class.
    """
    path = pathlib.Path(path).expanduser()
    is_run = path.is_dir()
    file = _table_of(path) if is_run else path
    try:
        table = predictions.read(file)
    except FileNotFoundError:
        raise RunError(f"{file}: no such work directory or table of predictions (.csv, .parquet)") from None
    except OSError:
        raise
    except predictions.PredictionsError as error:
        raise RunError(f"{file}: {error}") from error
    except Exception as error:  # readers of Parquet and CSV meet bytes that nobody thought of
        raise RunError(f"{file}: no table of predictions ({type(error).__name__}: {error})") from error
    found: dict[str, Any] = {}
    results = _json(path / "results.json") if is_run else {}
    if isinstance(results.get("splits"), dict) and "protocol" in results:  # else it is another program's
        found = {"results": results} | {key: _json(path / f"{key}.json") for key in ("run", "config")}
        found["curves"] = _lines(path / "metrics.jsonl")
        found["split"] = _split(path / "split.csv")
    locked = _locked(found.get("results", {}))
    classes, several = predictions.class_names(table), predictions.is_multilabel(table)
    if positive and (several or len(classes) != 2 or positive not in classes):
        raise RunError(f"--positive={positive}: the classes of {file} are {', '.join(classes)}: give one of two")
    of = None if several or len(classes) != 2 else positive or (_POSITIVE if _POSITIVE in classes else classes[1])
    called = name or (path.resolve().name if is_run else path.stem)
    source = Source(called, path, table, positive=of, thresholds=None, threshold_origin="", **found)
    cuts, origin = _thresholds(source, thresholds, locked, rule)
    return dataclasses.replace(source, thresholds=cuts, threshold_origin=origin)


def _table_of(run: pathlib.Path) -> pathlib.Path:
    for suffix in (".parquet", ".csv"):
        if (run / f"predictions{suffix}").is_file():
            return run / f"predictions{suffix}"
    raise RunError(
        f"{run}: has no predictions.parquet and no predictions.csv; a run writes them at its end, and "
        "python -m histojax.main --mode=eval makes them of a checkpoint"
    )


def _thresholds(
    source: Source, given: Mapping[str, float] | None, locked: Mapping[str, float], rule: str
) -> tuple[dict[str, float] | None, str]:
    """The thresholds by name, and where they come from."""
    asked = source.classes if source.multilabel else [] if source.positive is None else [source.positive]
    if given:
        unknown = sorted(set(given) - set(asked))
        if unknown:
            what = f"thresholds are those of {', '.join(asked)}" if asked else "of more than two classes there are none"
            raise RunError(f"--threshold of {', '.join(unknown)}: {source.path}: {what}")
        return {name: given.get(name, locked.get(name, 0.5)) for name in asked}, GIVEN
    if asked and set(asked) <= set(locked):
        return {name: locked[name] for name in asked}, "locked by the run on validation images"
    rows = source.validation
    if not asked or not len(rows):
        return None, ""
    if source.multilabel:
        there = rows[[predictions.LABEL_PREFIX + name for name in asked]].to_numpy()
    else:
        there = (rows["label"] == source.positive).to_numpy()[:, None]
    scores = rows[[predictions.PREFIX + name for name in asked]].to_numpy(dtype=np.float64)
    cuts = multilabel.choose_thresholds(there, scores, rule).tolist()
    words = {"youden": "Youden's index", "f1": "greatest F1", "fixed": "0.5"}[rule]
    return dict(zip(asked, cuts, strict=True)), f"chosen by this report on {len(rows)} validation images ({words})"


def _locked(results: Mapping[str, Any]) -> dict[str, float]:
    """The thresholds that results.json names: at its top, or of every label."""
    found = {name: float(cut) for name, cut in (results.get("thresholds") or {}).items()}
    for block in results.get("splits", {}).values():
        found |= {name: float(label["threshold"]) for name, label in block.get("labels", {}).items()}
    return found


def _json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}): restore it, or give the table of predictions alone") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: is not what a run writes: restore it, or give the table of predictions alone")
    return content


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    out = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            out.append(json.loads(line))
        except ValueError:
            break  # the last line of a run that was killed
    return [line for line in out if isinstance(line, dict) and "step" in line]


def _split(path: pathlib.Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype=str, na_filter=False)
    except ValueError as error:  # of pandas' own, and of bytes that are no text
        raise RunError(f"{path}: damaged ({error}): restore it, or give the table of predictions alone") from error
    return table if {"image_id", "split", "label"} <= set(table.columns) else None
