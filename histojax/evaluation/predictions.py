"""The table of predictions: one row per image. Every metric, plot and report is computed from this table alone.

Required columns: `image_id, patient_id, magnification, split, label, prob_<class>…`. Optional columns: `case_id`,
`subtype`, `slide_id` and `source_id`. Further columns are kept. `label` holds a class name. The prob columns give the
order of the classes. Where an image may have any number of labels, columns `label_<name>` (0 or 1) replace `label`,
and each `prob_<name>` is an independent probability.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histojax.core.csv_format import csv_format, csv_quoting
from histojax.core.files import atomic_write
from histojax.evaluation.metrics import Array

REQUIRED = ("image_id", "patient_id", "magnification", "split")
OPTIONAL = ("case_id", "subtype", "slide_id", "source_id")
PREFIX = "prob_"
LABEL_PREFIX = "label_"
SUM_TOLERANCE = 1e-3
RANGE_TOLERANCE = 1e-6  # a mean of float32 softmaxes may exceed 1 by a rounding error


class PredictionsError(ValueError):
    """A table cannot be evaluated. The message names the column, the number of rows and the remedy."""


def make_table(
    image_id: Sequence[object] | Array,
    label: Sequence[object] | Array,
    probabilities: Array,
    classes: Sequence[str],
    *,
    split: str | Sequence[str] | Array,
    patient_id: Sequence[object] | Array | None = None,
    magnification: Sequence[object] | Array | None = None,
    case_id: Sequence[object] | Array | None = None,
    subtype: Sequence[object] | Array | None = None,
    slide_id: Sequence[object] | Array | None = None,
    source_id: Sequence[object] | Array | None = None,
) -> pd.DataFrame:
    """Build a valid table from columns.

    Args:
      image_id: of each image, (n,).
      label: class indices (integers) or names, (n,); for tables with labels 0 or 1, (n, k).
      probabilities: (n, k).
      classes: names of the classes or labels, (k,).
      split: of each image, (n,), or one name for all.
      patient_id: of each image, (n,); None: unknown.
      magnification: of each image, (n,); None: unknown.
      case_id: of each image, (n,); None: no such column.
      subtype: of each image, (n,); None: no such column.
      slide_id: of each image, (n,); None: no such column.
      source_id: of each image, (n,); None: no such column.

    Raises:
      PredictionsError: lengths differ, or `validate` rejects the table.
    """
    probabilities = np.asarray(probabilities)
    n = len(image_id)
    if probabilities.shape != (n, len(classes)):
        raise PredictionsError(
            f"probabilities have shape {probabilities.shape}, but there are {n} rows of image_id and "
            f"{len(classes)} classes: give one row per image and one column per class"
        )
    columns: dict[str, Any] = {
        "image_id": image_id,
        "patient_id": [""] * n if patient_id is None else patient_id,
        "magnification": [""] * n if magnification is None else magnification,
        "split": [split] * n if isinstance(split, str) else split,
    }
    optional = {"case_id": case_id, "subtype": subtype, "slide_id": slide_id, "source_id": source_id}
    columns |= {name: column for name, column in optional.items() if column is not None}
    columns |= _label_columns(label, probabilities, classes)
    table = {}
    for name, column in columns.items():
        values = list(column)
        if len(values) != n:
            raise PredictionsError(
                f"column '{name}' has {len(values)} rows, image_id has {n}: give one value per image"
            )
        table[name] = values
    frame = pd.DataFrame(table)
    for i, name in enumerate(classes):
        frame[PREFIX + name] = probabilities[:, i].astype(np.float64)
    return normalise(frame)


def _label_columns(label: Sequence[object] | Array, probabilities: Array, classes: Sequence[str]) -> dict[str, Any]:
    """Make the column `label`, or the columns `label_<name>` from labels (n, k)."""
    labels = np.asarray(label)
    if labels.ndim != 2:
        return {"label": _label_names(label, classes)}
    if labels.shape != probabilities.shape:
        raise PredictionsError(
            f"labels have shape {labels.shape}, probabilities {probabilities.shape}: give one column per label"
        )
    return {LABEL_PREFIX + name: labels[:, i] for i, name in enumerate(classes)}


def _label_names(label: Sequence[object] | Array, classes: Sequence[str]) -> list[object]:
    values = np.asarray(label)
    if not np.issubdtype(values.dtype, np.integer):
        return list(label)
    outside = int(((values < 0) | (values >= len(classes))).sum())
    if outside:
        raise PredictionsError(
            f"column 'label': {outside} of {len(values)} rows are not an index of the {len(classes)} classes: "
            "leave out padding and unlabelled images"
        )
    return [classes[int(i)] for i in values]


def class_names(df: pd.DataFrame) -> list[str]:
    """List the classes or labels in the order of the prob columns."""
    return [str(c)[len(PREFIX) :] for c in df.columns if str(c).startswith(PREFIX)]


def is_multilabel(df: pd.DataFrame) -> bool:
    """Return whether an image of this table may have any number of labels.

    Raises:
      PredictionsError: the table has the columns of both forms.
    """
    columns = {str(c) for c in df.columns}
    names = class_names(df)
    has_label_columns = bool(names) and all(LABEL_PREFIX + name in columns for name in names)
    if "label" in columns and has_label_columns:
        raise PredictionsError(
            f"both column 'label' and columns '{LABEL_PREFIX}{names[0]}'… are present ({len(df)} rows): drop 'label' "
            f"if an image may have several labels, else drop the '{LABEL_PREFIX}' columns"
        )
    return "label" not in columns and any(c.startswith(LABEL_PREFIX) for c in columns)


def as_text(column: pd.Series) -> pd.Series:
    """Convert a column to text: missing is "", 40.0 is "40" (a gap turns integers into floats), bytes are decoded."""

    def convert(value: object) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, bytes):
            return value.decode()
        if value is None or value is pd.NA or value != value:  # nan and NaT differ from themselves
            return ""
        if isinstance(value, (float, np.floating)) and float(value).is_integer():
            return str(int(value))
        return str(value)

    return pd.Series([convert(v) for v in column.tolist()], index=column.index)


def _reject(column: str, bad: Array, problem: str, remedy: str, examples: pd.Series | None = None) -> None:
    """Raise PredictionsError if any row (n,) is bad; name up to three different values."""
    count = int(np.sum(bad))
    if count:
        shown = "" if examples is None else f" (e.g. {', '.join(map(repr, pd.unique(examples[bad])[:3]))})"
        raise PredictionsError(f"column '{column}': {count} of {len(bad)} rows {problem}{shown}: {remedy}")


def validate(df: pd.DataFrame) -> list[str]:
    """Check that a table can be evaluated; return its classes or labels.

    Raises:
      PredictionsError: it cannot.
    """
    is_multi = is_multilabel(df)
    classes = _validate_columns(df, is_multi)
    image_id = as_text(df["image_id"])
    _reject("image_id", np.asarray(image_id == ""), "are empty", "give every image a name")
    _reject("image_id", np.asarray(image_id.duplicated(keep=False)), "share their image_id with another row",
            "keep one row per image: padding or a repeated epoch duplicates rows", image_id)  # fmt: skip
    _reject("split", np.asarray(as_text(df["split"]) == ""), "are empty", "name the split, such as 'test'")
    if is_multi:
        _validate_labels(df, classes)
    else:
        label = as_text(df["label"])
        _reject("label", np.asarray(~label.isin(classes)), "are not one of the classes",
                f"use the names of the prob columns, {classes}, or add the missing column", label)  # fmt: skip
    _validate_probabilities(df, classes, is_multi)
    return classes


def _validate_columns(df: pd.DataFrame, is_multi: bool) -> list[str]:
    """Check the names of the columns and that there are rows; return the classes or labels."""
    n, columns = len(df), [str(c) for c in df.columns]
    missing = [c for c in (REQUIRED if is_multi else (*REQUIRED, "label")) if c not in columns]
    if missing:
        raise PredictionsError(
            f"column {', '.join(map(repr, missing))} missing from a table of {n} rows: add it "
            "(patient_id and magnification may be empty)"
        )
    duplicates = sorted({c for c in columns if columns.count(c) > 1})
    if duplicates:
        raise PredictionsError(f"column {', '.join(map(repr, duplicates))} occurs twice ({n} rows): drop one")
    classes = class_names(df)
    if (len(classes) < 2 and not is_multi) or "" in classes:
        raise PredictionsError(
            f"columns 'prob_<class>' ({n} rows) give {classes}: give one named column per class, two or more"
        )
    if n == 0:
        raise PredictionsError("column 'image_id': 0 rows, nothing to evaluate: check the split that was predicted")
    return classes


def _validate_labels(df: pd.DataFrame, names: Sequence[str]) -> None:
    labelled = [str(c)[len(LABEL_PREFIX) :] for c in df.columns if str(c).startswith(LABEL_PREFIX)]
    unpaired = [LABEL_PREFIX + name for name in labelled if name not in names]
    unpaired += [PREFIX + name for name in names if name not in labelled]
    if unpaired:
        raise PredictionsError(
            f"column {', '.join(map(repr, unpaired))} ({len(df)} rows) has no counterpart: give both "
            f"{LABEL_PREFIX}<name> and {PREFIX}<name> for each label"
        )
    for name in names:
        column = LABEL_PREFIX + name
        wrong = ~np.isin(_numbers(df[column]), (0.0, 1.0))
        _reject(
            column, wrong, "are neither 0 nor 1", "state for every image whether it has the label", as_text(df[column])
        )


def _validate_probabilities(df: pd.DataFrame, classes: Sequence[str], is_multi: bool) -> None:
    for name in classes:
        column = PREFIX + name
        numbers = _numbers(df[column])
        _reject(column, ~np.isfinite(numbers), "are not a finite number", "look for nan in the logits or empty cells")
        outside = (numbers < -RANGE_TOLERANCE) | (numbers > 1 + RANGE_TOLERANCE)
        function = "sigmoid" if is_multi else "softmax"
        _reject(column, outside, "lie outside [0, 1]", f"give probabilities: apply {function} to the logits")
    if not is_multi:
        off = np.abs(_probabilities(df, classes).sum(1) - 1) > SUM_TOLERANCE
        _reject(f"{PREFIX}{classes[0]}…{PREFIX}{classes[-1]}", off, f"do not sum to 1 within {SUM_TOLERANCE}",
                "give the softmax over all classes, in float32 or better")  # fmt: skip


def _numbers(column: pd.Series) -> Array:
    return np.asarray(pd.to_numeric(column, errors="coerce"), np.float64)


def _probabilities(df: pd.DataFrame, classes: Sequence[str]) -> Array:
    return np.stack([np.asarray(pd.to_numeric(df[PREFIX + c]), np.float64) for c in classes], axis=1)


def pool_folds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join the test rows of several folds. An image that several folds test keeps one row per fold.

    A bootstrap over patients draws all rows of a patient together, whatever their folds.
    """
    pooled = pd.concat([t[t["split"] == "test"] for t in tables], keys=range(len(tables)), names=["fold", "row"])
    pooled = pooled.reset_index("fold").reset_index(drop=True)
    if pooled["image_id"].duplicated().any():
        pooled["image_id"] = "fold " + pooled["fold"].astype(str) + ": " + pooled["image_id"]
    return pooled.drop(columns="fold")


def normalise(df: pd.DataFrame) -> pd.DataFrame:
    """Return a validated copy: text as text, missing as "", probabilities as float64 in [0, 1], columns in order.

    Raises:
      PredictionsError: the table cannot be evaluated.
    """
    classes = validate(df)
    table = df.reset_index(drop=True).copy()
    table.columns = pd.Index([str(c) for c in table.columns])
    is_multi = is_multilabel(table)
    text = [*REQUIRED, *(() if is_multi else ("label",)), *(c for c in OPTIONAL if c in table.columns)]
    for name in text:
        table[name] = as_text(table[name])
    label_columns = [LABEL_PREFIX + name for name in classes] if is_multi else []
    for name in label_columns:
        table[name] = _numbers(table[name]).astype(np.int64)
    probabilities = np.clip(_probabilities(table, classes), 0.0, 1.0)
    for i, name in enumerate(classes):
        table[PREFIX + name] = probabilities[:, i]
    named = [*text, *label_columns, *(PREFIX + c for c in classes)]
    return table[[*named, *(c for c in table.columns if c not in named)]]


def write(df: pd.DataFrame, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write `path`.parquet and `path`.csv atomically; return both paths."""
    table, base = normalise(df), Path(path)
    if base.suffix in (".parquet", ".csv"):
        base = base.with_suffix("")
    base.parent.mkdir(parents=True, exist_ok=True)
    parquet, csv = (base.with_name(base.name + suffix) for suffix in (".parquet", ".csv"))
    # Nested: neither file is replaced unless both could be written.
    with atomic_write(csv) as csv_part, atomic_write(parquet) as parquet_part:
        table.to_parquet(parquet_part, engine="pyarrow", index=False)
        table.to_csv(csv_part, index=False, quoting=csv_quoting(cell for name in table for cell in table[name]))
    return parquet, csv


def read(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a valid table from a .parquet or .csv file; without either suffix, from the Parquet file of that name.

    Raises:
      PredictionsError: the table cannot be evaluated.
      FileNotFoundError: there is no such file.
    """
    path = Path(path)
    return normalise(load(path if path.suffix in (".parquet", ".csv") else path.with_name(path.name + ".parquet")))


def load(path: Path) -> pd.DataFrame:
    """Read a .parquet or .csv file as it is, such as a table without labels: text stays text in the columns known here.

    Raises:
      FileNotFoundError: there is no such file.
    """
    if path.suffix == ".parquet":
        return pd.read_parquet(path, engine="pyarrow")
    # Identifiers stay text ("007", "NA"). Probabilities are read as text first, because Python's float restores every
    # bit, while the result of pandas' CSV parser depends on its version.
    found = csv_format(path)
    options: dict[str, Any] = {"sep": found.delimiter, "encoding": found.encoding}
    probabilities = [c for c in pd.read_csv(path, nrows=0, **options).columns if c.startswith(PREFIX)]
    text = dict.fromkeys((*REQUIRED, "label", *OPTIONAL, *probabilities), str)
    table = pd.read_csv(path, dtype=text, na_filter=False, **options)
    for name in probabilities:
        with suppress(ValueError):  # `validate` names the rows that are not numbers
            # Where semicolons separate the cells, spreadsheets write a comma for the decimal point.
            cells = table[name].str.replace(",", ".") if found.delimiter == ";" else table[name]
            table[name] = [float(value) for value in cells]
    return pd.DataFrame(table)
