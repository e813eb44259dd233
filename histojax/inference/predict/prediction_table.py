"""From answers to the table of predictions, a block of rows at a time: never more than a block is in memory.

The columns are those of `histojax.evaluation.predictions`, so that a table with true labels (from a list) can be
evaluated as it is: `image_id, patient_id, magnification, split`, what lists say, `prob_<class>…`; behind them
`predicted`, the most probable class, or `predicted_<label>…`, 0 or 1. Images without an answer stand in another table,
with the reason.
"""

import contextlib
import csv
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.breakhis import filenames
from histojax.core.errors import RunError
from histojax.core.files import atomic_write
from histojax.inference.predict.images import ImageRef
from histojax.inference.predict.journal import Answer

SUFFIXES = (".csv", ".parquet")
_ROWS = 4096  # of a block
_FIRST = ("patient_id", "magnification", "split")
_SPLIT = "predicted"  # where no list says another


def failures_of(output: pathlib.Path) -> pathlib.Path:
    """Where the images without an answer are listed, beside the table."""
    return output.with_name(f"{output.stem}.failed.csv")


def check_output(output: pathlib.Path) -> None:
    """Verifies the name of a table.

    Raises:
      RunError: neither .csv nor .parquet.
    """
    if output.suffix not in SUFFIXES or output.is_dir():
        raise RunError(f"--output={output} is no file that ends in {' or '.join(SUFFIXES)}")


def write(
    output: pathlib.Path, refs: Sequence[ImageRef], answers: Iterable[Answer], classes: Sequence[str],
    thresholds: Mapping[str, float] | None,
) -> int:  # fmt: skip
    """Writes the table, and that of the failures where there are some; returns how many.

    Args:
      output: .csv or .parquet.
      refs: the images.
      answers: one an image, in the same order.
      classes: names in the order of the probabilities.
      thresholds: of each label, at least which it is there; of two classes, of the positive one alone; None: one class
        an image, the most probable.
    """
    further = list(dict.fromkeys(column for ref in refs for column in ref.facts if column not in _FIRST))
    pairs = zip(refs, answers, strict=True)
    failed = 0
    failures = failures_of(output)
    with (
        atomic_write(failures) as bad_part,
        atomic_write(output) as part,
        open(bad_part, "w", newline="", encoding="utf-8") as file,
        _writer(output.suffix, part) as write_rows,
    ):
        bad = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        bad.writerow(["image_id", "reason"])
        while block := list(islice(pairs, _ROWS)):
            good = [(ref, answer) for ref, answer in block if not isinstance(answer, str)]
            bad.writerows([ref.image_id, answer] for ref, answer in block if isinstance(answer, str))
            failed += len(block) - len(good)
            write_rows(_frame(good, classes, thresholds, further))
    if not failed:
        failures.unlink()
    return failed


def _frame(
    block: Sequence[tuple[ImageRef, Sequence[float]]], classes: Sequence[str],
    thresholds: Mapping[str, float] | None, further: Sequence[str],
) -> pd.DataFrame:  # fmt: skip
    rows = [_said(ref) for ref, _ in block]
    columns: dict[str, Any] = {"image_id": [ref.image_id for ref, _ in block]}
    columns |= {name: [row.get(name, "") for row in rows] for name in (*_FIRST, *further)}
    frame = pd.DataFrame(columns, dtype=str)
    probabilities = np.array([answer for _, answer in block], np.float64).reshape(len(block), len(classes))
    return frame.join(answered(probabilities, classes, thresholds))


def answered(probabilities: np.ndarray, classes: Sequence[str], thresholds: Mapping[str, float] | None) -> pd.DataFrame:
    """Columns `prob_<class>` of probabilities (n, k), and `predicted`, or `predicted_<label>` of several labels.

    `thresholds` are as `write` takes them.
    """
    frame = pd.DataFrame({f"prob_{name}": probabilities[:, i] for i, name in enumerate(classes)})
    if thresholds is None:
        frame["predicted"] = pd.Series([classes[i] for i in probabilities.argmax(1)], dtype=str)
    elif len(thresholds) < len(classes):
        ((positive, cut),) = thresholds.items()
        (other,) = (name for name in classes if name != positive)
        said = probabilities[:, classes.index(positive)] >= cut
        frame["predicted"] = pd.Series(np.where(said, positive, other), dtype=str)
    else:
        for i, name in enumerate(classes):
            frame[f"predicted_{name}"] = (probabilities[:, i] >= thresholds[name]).astype(np.int64)
    return frame


def _said(ref: ImageRef) -> dict[str, str]:
    """What is known of an image: what its name says, and, above that, what a list says."""
    known = {"split": _SPLIT}
    try:
        name = filenames.parse(pathlib.PurePosixPath(ref.member or ref.path).name)
        known |= {"patient_id": name.patient_id, "magnification": name.magnification}
    except filenames.BadNameError:
        pass
    return known | {key: value for key, value in ref.facts.items() if value}


@contextlib.contextmanager
def _writer(suffix: str, path: pathlib.Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """What writes a block of rows behind those before it."""
    if suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:

            def write_csv(frame: pd.DataFrame) -> None:
                # All text in quotes: a carriage return in a name would end a row otherwise.
                options: dict[str, Any] = {"quoting": csv.QUOTE_NONNUMERIC, "lineterminator": "\n"}
                frame.to_csv(file, header=file.tell() == 0, index=False, **options)

            yield write_csv
    else:
        with contextlib.ExitStack() as stack:
            opened: list[pq.ParquetWriter] = []

            def write_parquet(frame: pd.DataFrame) -> None:
                # Said, because a block without values would have no types.
                kinds = {"f": pa.float64(), "i": pa.int64()}
                schema = pa.schema([(name, kinds.get(frame[name].dtype.kind, pa.string())) for name in frame.columns])
                if not opened:
                    opened.append(stack.enter_context(pq.ParquetWriter(path, schema)))
                opened[0].write_table(pa.Table.from_pandas(frame, schema, preserve_index=False))

            yield write_parquet
