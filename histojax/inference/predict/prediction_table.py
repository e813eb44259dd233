"""Write the table of predictions, one block of rows at a time, so that no more than a block is in memory.

The columns are those of `histojax.evaluation.predictions`: a table with true labels (from a list) can be evaluated as
it is. They are `image_id, patient_id, magnification, split`, the further columns of lists, `prob_<class>…`, and then
`predicted` (the most probable class) or one `predicted_<label>` (0 or 1) per label. With models that normalise stains,
`stain_normalised` follows: 0 where an image has too little tissue. Then come the columns of
`histojax.evaluation.novelty`, if the run has such a file, and on demand prediction sets. Images that could not be read
are written to a second table, with the reason.
"""

import collections
import contextlib
import csv
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TextIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.breakhis import filenames
from histojax.core.errors import RunError
from histojax.core.files import atomic_write
from histojax.evaluation.conformal import SetRule
from histojax.evaluation.novelty import FLAGS
from histojax.evaluation.thresholds import is_positive
from histojax.inference.predict.images import ImageRef
from histojax.inference.predict.partial_results import Prediction
from histojax.inference.predict.set_columns import set_columns

SUFFIXES = (".csv", ".parquet")
_BLOCK_ROWS = 4096
_FIRST_COLUMNS = ("patient_id", "magnification", "split")
NORMALISED = "stain_normalised"
_TYPES: dict[str, type] = {NORMALISED: np.int64, FLAGS: str}
_SPLIT = "predicted"  # the value of the column `split` unless a list gives another


@dataclasses.dataclass
class Summary:
    """What a table of predictions holds.

    Attributes:
      images: images with a prediction.
      failed: images that could not be read.
      labels: class -> images predicted as it; multi-label: label -> images that it was assigned to.
      patients: known patients of the images with a prediction.
      not_normalised: images with too little tissue for the models' stain normalisation.
      sets: "" or, multi-label, label -> number of answers in a set -> images; empty without sets.
      flags: images with each flag of `novelty_flags`; None: the run does not recognise unusual images.
    """

    labels: dict[str, int]
    images: int = 0
    failed: int = 0
    not_normalised: int = 0
    patients: set[str] = dataclasses.field(default_factory=set)
    sets: dict[str, collections.Counter[int]] = dataclasses.field(default_factory=dict)
    flags: collections.Counter[str] | None = None

    def add(self, frame: pd.DataFrame, num_failed: int) -> None:
        """Count a block of rows of the table, and images that could not be read."""
        self.images += len(frame)
        self.failed += num_failed
        if NORMALISED in frame:
            self.not_normalised += int((frame[NORMALISED] == 0).sum())
        self.patients |= set(frame["patient_id"]) - {""}
        for name in self.labels:
            assigned = frame["predicted"] == name if "predicted" in frame else frame[f"predicted_{name}"]
            self.labels[name] += int(assigned.sum())
        if FLAGS in frame:
            found = (flag for flags in frame[FLAGS] for flag in flags.split("; ") if flag)
            self.flags = (self.flags or collections.Counter()) + collections.Counter(found)

    def add_sets(self, held: Mapping[str, np.ndarray]) -> None:
        """Count sets, by label or under the empty name: booleans (n, k), the answers that each holds."""
        for name, sets in held.items():
            self.sets.setdefault(name, collections.Counter()).update(sets.sum(1).tolist())


def failures_path(output: pathlib.Path) -> pathlib.Path:
    """Return the path of the table of unreadable images, beside the table of predictions."""
    return output.with_name(f"{output.stem}.failed.csv")


def failures_writer(file: TextIO) -> Callable[[Iterable[Sequence[str]]], None]:
    """Write the first line of a table of unreadable images; return a function that appends pairs of name and reason."""
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["image_id", "reason"])
    return writer.writerows


def check_output(output: pathlib.Path) -> None:
    """Check the file name of a table.

    Raises:
      RunError: it ends in neither .csv nor .parquet, or it is a folder.
    """
    if output.suffix not in SUFFIXES or output.is_dir():
        raise RunError(f"--output={output} is not a file name that ends in {' or '.join(SUFFIXES)}")


def write(
    output: pathlib.Path, refs: Sequence[ImageRef], predictions: Iterable[Prediction], classes: Sequence[str],
    thresholds: Mapping[str, float] | None, further: Sequence[str] = (), *, sets: SetRule | None = None,
    abstain: bool = False,
) -> Summary:  # fmt: skip
    """Write the table of predictions, and a table of the unreadable images if there are any.

    Args:
      output: .csv or .parquet file.
      refs: the images.
      predictions: one per image, in the same order.
      classes: names in the order of the probabilities.
      thresholds: as `prediction_columns` takes them.
      further: names of the values behind the probabilities of an image.
      sets: prediction sets to add; None: none.
      abstain: whether to add the answers of these sets, which abstain unless a set holds exactly one.

    Returns:
      What the table holds.
    """
    list_columns = list(dict.fromkeys(column for ref in refs for column in ref.facts if column not in _FIRST_COLUMNS))
    pairs = zip(refs, predictions, strict=True)
    summary = Summary(dict.fromkeys(classes, 0))
    failures = failures_path(output)
    with (
        atomic_write(failures) as temporary_failures,
        atomic_write(output) as temporary_output,
        open(temporary_failures, "w", newline="", encoding="utf-8") as file,
        _block_writer(output.suffix, temporary_output) as write_block,
    ):
        write_failures = failures_writer(file)
        while block := list(islice(pairs, _BLOCK_ROWS)):
            rows = [(ref, prediction) for ref, prediction in block if not isinstance(prediction, str)]
            write_failures([ref.image_id, reason] for ref, reason in block if isinstance(reason, str))
            frame = _block_frame(rows, classes, thresholds, list_columns, further)
            summary.add(frame, len(block) - len(rows))
            if sets is not None:
                held = sets.held(frame[[f"prob_{name}" for name in classes]].to_numpy())
                summary.add_sets(held)
                frame = frame.join(set_columns(held, sets, abstain=abstain))
            write_block(frame)
    if not summary.failed:
        failures.unlink()
    return summary


def prediction_columns(
    probabilities: np.ndarray, classes: Sequence[str], thresholds: Mapping[str, float] | None
) -> pd.DataFrame:
    """Build the columns `prob_<class>`, and `predicted` or one `predicted_<label>` per label.

    Args:
      probabilities: (n, k).
      classes: names in the order of the probabilities.
      thresholds: multi-label: the least probability at which each label is assigned; with two classes, that of the
        positive class only; None: one class per image, the most probable.
    """
    frame = pd.DataFrame({f"prob_{name}": probabilities[:, i] for i, name in enumerate(classes)})
    if thresholds is None:
        frame["predicted"] = pd.Series([classes[i] for i in probabilities.argmax(1)], dtype=str)
    elif len(thresholds) < len(classes):
        ((positive, threshold),) = thresholds.items()
        (negative,) = (name for name in classes if name != positive)
        decided = is_positive(probabilities[:, classes.index(positive)], threshold)
        frame["predicted"] = pd.Series(np.where(decided, positive, negative), dtype=str)
    else:
        for i, name in enumerate(classes):
            frame[f"predicted_{name}"] = is_positive(probabilities[:, i], thresholds[name]).astype(np.int64)
    return frame


def _block_frame(
    block: Sequence[tuple[ImageRef, Sequence[Any]]], classes: Sequence[str],
    thresholds: Mapping[str, float] | None, list_columns: Sequence[str], further: Sequence[str],
) -> pd.DataFrame:  # fmt: skip
    rows = [image_facts(ref) for ref, _ in block]
    columns: dict[str, Any] = {"image_id": [ref.image_id for ref, _ in block]}
    columns |= {name: [row.get(name, "") for row in rows] for name in (*_FIRST_COLUMNS, *list_columns)}
    frame = pd.DataFrame(columns, dtype=str)
    k = len(classes)
    probabilities = np.array([row[:k] for _, row in block], np.float64).reshape(len(block), k)
    frame = frame.join(prediction_columns(probabilities, classes, thresholds))
    for i, name in enumerate(further):
        frame[name] = pd.Series([row[k + i] for _, row in block], dtype=_TYPES.get(name, np.float64))
    return frame


def image_facts(ref: ImageRef) -> dict[str, str]:
    """Collect what the file name (as BreakHis has them) and a list say about an image; the list takes precedence."""
    facts = {"split": _SPLIT}
    try:
        name = filenames.parse(pathlib.PurePosixPath(ref.member or ref.path).name)
        facts |= {"patient_id": name.patient_id, "magnification": name.magnification}
    except filenames.BadNameError:
        pass
    return facts | {key: value for key, value in ref.facts.items() if value}


@contextlib.contextmanager
def _block_writer(suffix: str, path: pathlib.Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Provide a function that appends a block of rows to the file."""
    if suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:

            def write_csv(frame: pd.DataFrame) -> None:
                # Quote all text: a carriage return in a name would otherwise end the row.
                options: dict[str, Any] = {"quoting": csv.QUOTE_NONNUMERIC, "lineterminator": "\n"}
                frame.to_csv(file, header=file.tell() == 0, index=False, **options)

            yield write_csv
    else:
        with contextlib.ExitStack() as stack:
            opened: list[pq.ParquetWriter] = []

            def write_parquet(frame: pd.DataFrame) -> None:
                # The schema is explicit because a block without values would have no types.
                kinds = {"f": pa.float64(), "i": pa.int64()}
                schema = pa.schema([(name, kinds.get(frame[name].dtype.kind, pa.string())) for name in frame.columns])
                if not opened:
                    opened.append(stack.enter_context(pq.ParquetWriter(path, schema)))
                opened[0].write_table(pa.Table.from_pandas(frame, schema, preserve_index=False))

            yield write_parquet
