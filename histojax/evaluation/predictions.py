"""The table of predictions: a row an image; every metric, plot and report is made from it alone.

Columns `image_id, patient_id, magnification, split, label, prob_<class>…`, optionally `case_id`, `subtype`,
`slide_id` and `source_id`; further columns are kept. `label` holds a class name; the order of the classes is that
of the prob columns. Where an image may have several labels, or none, there are columns `label_<name>`, 0 or 1,
instead of `label`, and each `prob_<name>` is a question of its own.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histojax.core.files import atomic_write
from histojax.evaluation.metrics import Array

REQUIRED = ("image_id", "patient_id", "magnification", "split")
OPTIONAL = ("case_id", "subtype", "slide_id", "source_id")
PREFIX = "prob_"
LABEL_PREFIX = "label_"
SUM_TOLERANCE = 1e-3
RANGE_TOLERANCE = 1e-6  # a mean of float32 softmaxes may stand a rounding error above 1


class PredictionsError(ValueError):
    """A table that cannot be evaluated; the message names the column, the rows and the remedy."""


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
    """Valid table from columns (n,) and probabilities (n, k).

    `label`: class indices (integers) or names, (n,); several labels an image: 0 or 1, (n, k). Raises
    PredictionsError where lengths differ or `validate` finds something.
    """
    probabilities = np.asarray(probabilities)
    n = len(image_id)
    if probabilities.shape != (n, len(classes)):
        raise PredictionsError(
            f"probabilities have shape {probabilities.shape}, but there are {n} rows of image_id and "
            f"{len(classes)} classes: give one row an image and one column a class"
        )
    columns: dict[str, Any] = {
        "image_id": image_id,
        "patient_id": [""] * n if patient_id is None else patient_id,
        "magnification": [""] * n if magnification is None else magnification,
        "split": [split] * n if isinstance(split, str) else split,
    }
    further = {"case_id": case_id, "subtype": subtype, "slide_id": slide_id, "source_id": source_id}
    columns |= {name: column for name, column in further.items() if column is not None}
    truth = np.asarray(label)
    if truth.ndim == 2:
        if truth.shape != probabilities.shape:
            raise PredictionsError(
                f"labels have shape {truth.shape}, probabilities {probabilities.shape}: give one column a label"
            )
        columns |= {LABEL_PREFIX + name: truth[:, i] for i, name in enumerate(classes)}
    else:
        columns["label"] = _label_names(label, classes)
    table = {}
    for name, column in columns.items():
        values = list(column)
        if len(values) != n:
            raise PredictionsError(f"column '{name}' has {len(values)} rows, image_id has {n}: give one an image")
        table[name] = values
    frame = pd.DataFrame(table)
    for i, name in enumerate(classes):
        frame[PREFIX + name] = probabilities[:, i].astype(np.float64)
    return normalise(frame)


def _label_names(label: Sequence[object] | Array, classes: Sequence[str]) -> list[object]:
    values = np.asarray(label)
    if not np.issubdtype(values.dtype, np.integer):
        return list(label)
    outside = int(((values < 0) | (values >= len(classes))).sum())
    if outside:
        raise PredictionsError(
            f"column 'label': {outside} of {len(values)} rows are no index into the {len(classes)} classes: "
            "leave padding and unlabelled images out"
        )
    return [classes[int(i)] for i in values]


def class_names(df: pd.DataFrame) -> list[str]:
    """Names of the classes or labels, in the order of the prob columns."""
    return [str(c)[len(PREFIX) :] for c in df.columns if str(c).startswith(PREFIX)]


def is_multilabel(df: pd.DataFrame) -> bool:
    """Whether an image of this table may have several labels.

    Raises PredictionsError if it has the columns of both forms.
    """
    columns = {str(c) for c in df.columns}
    names = class_names(df)
    each = bool(names) and all(LABEL_PREFIX + name in columns for name in names)
    if "label" in columns and each:
        raise PredictionsError(
            f"column 'label' stands beside '{LABEL_PREFIX}{names[0]}'… ({len(df)} rows): drop 'label' if an image may "
            "have several labels, else the others"
        )
    return "label" not in columns and any(c.startswith(LABEL_PREFIX) for c in columns)


def _text(column: pd.Series) -> pd.Series:
    """Column as text: missing is "", 40.0 is "40" (a gap turns integers into floats), bytes are decoded."""

    def one(value: object) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, bytes):
            return value.decode()
        if value is None or value is pd.NA or value != value:  # nan and NaT differ from themselves
            return ""
        if isinstance(value, (float, np.floating)) and float(value).is_integer():
            return str(int(value))
        return str(value)

    return pd.Series([one(v) for v in column.tolist()], index=column.index)


def _refuse(column: str, bad: Array, what: str, remedy: str, examples: pd.Series | None = None) -> None:
    count = int(np.sum(bad))
    if count:
        seen = "" if examples is None else f" (e.g. {', '.join(map(repr, pd.unique(examples[bad])[:3]))})"
        raise PredictionsError(f"column '{column}': {count} of {len(bad)} rows {what}{seen}: {remedy}")


def validate(df: pd.DataFrame) -> list[str]:
    """Names of the classes of a table that can be evaluated; raises PredictionsError otherwise."""
    n, columns = len(df), [str(c) for c in df.columns]
    several = is_multilabel(df)
    missing = [c for c in (REQUIRED if several else (*REQUIRED, "label")) if c not in columns]
    if missing:
        raise PredictionsError(
            f"column {', '.join(map(repr, missing))} missing from a table of {n} rows: add it "
            "(patient_id and magnification may be empty)"
        )
    doubled = sorted({c for c in columns if columns.count(c) > 1})
    if doubled:
        raise PredictionsError(f"column {', '.join(map(repr, doubled))} stands twice ({n} rows): drop one")
    classes = class_names(df)
    if (len(classes) < 2 and not several) or "" in classes:
        raise PredictionsError(
            f"columns 'prob_<class>': {n} rows give {classes}: one named column a class, two or more"
        )
    if n == 0:
        raise PredictionsError("column 'image_id': 0 rows: nothing to evaluate; check the split that was predicted")

    image_id = _text(df["image_id"])
    _refuse("image_id", np.asarray(image_id == ""), "are empty", "give every image a name")
    _refuse("image_id", np.asarray(image_id.duplicated(keep=False)), "share their image_id with another",
            "keep one row an image: padding or a repeated epoch doubles rows", image_id)  # fmt: skip
    _refuse("split", np.asarray(_text(df["split"]) == ""), "are empty", "name the split, such as 'test'")
    if several:
        _validate_labels(df, classes)
    else:
        label = _text(df["label"])
        _refuse("label", np.asarray(~label.isin(classes)), "are none of the classes",
                f"use the names of the prob columns, {classes}, or add the missing one", label)  # fmt: skip

    for name in classes:
        column = PREFIX + name
        numbers = _numbers(df[column])
        _refuse(column, ~np.isfinite(numbers), "are no finite number", "look for nan in the logits or empty cells")
        outside = (numbers < -RANGE_TOLERANCE) | (numbers > 1 + RANGE_TOLERANCE)
        remedy = "sigmoid" if several else "softmax"
        _refuse(column, outside, "lie outside [0, 1]", f"give probabilities: {remedy} the logits")
    if not several:
        off = np.abs(_probabilities(df, classes).sum(1) - 1) > SUM_TOLERANCE
        _refuse(f"{PREFIX}{classes[0]}…{PREFIX}{classes[-1]}", off, f"do not sum to 1 within {SUM_TOLERANCE}",
                "give the softmax over all classes, in float32 or better")  # fmt: skip
    return classes


def _validate_labels(df: pd.DataFrame, names: Sequence[str]) -> None:
    labelled = [str(c)[len(LABEL_PREFIX) :] for c in df.columns if str(c).startswith(LABEL_PREFIX)]
    alone = [LABEL_PREFIX + name for name in labelled if name not in names]
    alone += [PREFIX + name for name in names if name not in labelled]
    if alone:
        raise PredictionsError(
            f"column {', '.join(map(repr, alone))} ({len(df)} rows): of every label there must be both, "
            f"{LABEL_PREFIX}<name> and {PREFIX}<name>"
        )
    for name in names:
        column = LABEL_PREFIX + name
        wrong = ~np.isin(_numbers(df[column]), (0.0, 1.0))
        _refuse(
            column, wrong, "are neither 0 nor 1", "say of every image whether it carries the label", _text(df[column])
        )


def _numbers(column: pd.Series) -> Array:
    return np.asarray(pd.to_numeric(column, errors="coerce"), np.float64)


def _probabilities(df: pd.DataFrame, classes: Sequence[str]) -> Array:
    return np.stack([np.asarray(pd.to_numeric(df[PREFIX + c]), np.float64) for c in classes], axis=1)


def normalise(df: pd.DataFrame) -> pd.DataFrame:
    """Validated copy: text as text, missing as "", probabilities as float64 in [0, 1], columns in order."""
    classes = validate(df)
    table = df.reset_index(drop=True).copy()
    table.columns = pd.Index([str(c) for c in table.columns])
    several = is_multilabel(table)
    text = [*REQUIRED, *(() if several else ("label",)), *(c for c in OPTIONAL if c in table.columns)]
    for name in text:
        table[name] = _text(table[name])
    truth = [LABEL_PREFIX + name for name in classes] if several else []
    for name in truth:
        table[name] = _numbers(table[name]).astype(np.int64)
    probabilities = np.clip(_probabilities(table, classes), 0.0, 1.0)
    for i, name in enumerate(classes):
        table[PREFIX + name] = probabilities[:, i]
    named = [*text, *truth, *(PREFIX + c for c in classes)]
    return table[[*named, *(c for c in table.columns if c not in named)]]


def write(df: pd.DataFrame, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write `path`.parquet and `path`.csv, each complete or not at all; returns both paths."""
    table, base = normalise(df), Path(path)
    if base.suffix in (".parquet", ".csv"):
        base = base.with_suffix("")
    base.parent.mkdir(parents=True, exist_ok=True)
    parquet, csv = (base.with_name(base.name + suffix) for suffix in (".parquet", ".csv"))
    # Nested, so that neither file is replaced unless both could be written.
    with atomic_write(csv) as csv_part, atomic_write(parquet) as parquet_part:
        table.to_parquet(parquet_part, engine="pyarrow", index=False)
        table.to_csv(csv_part, index=False)
    return parquet, csv


def read(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Valid table from a .parquet or .csv file; without either suffix, the Parquet file of that name.

    Raises PredictionsError, or FileNotFoundError.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        path = path.with_name(path.name + ".parquet")
    if path.suffix == ".parquet":
        return normalise(pd.read_parquet(path, engine="pyarrow"))
    # Identifiers stay text ("007", "NA"). So do probabilities, at first: Python's float gives back every bit;
    # what the parser of CSV does depends on the version of pandas.
    probabilities = [c for c in pd.read_csv(path, nrows=0).columns if c.startswith(PREFIX)]
    text = dict.fromkeys((*REQUIRED, "label", *OPTIONAL, *probabilities), str)
    table = pd.read_csv(path, dtype=text, na_filter=False)
    for name in probabilities:
        with suppress(ValueError):  # what is no number is left for `validate` to name
            table[name] = [float(value) for value in table[name]]
    return normalise(table)
