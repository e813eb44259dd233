"""Predictions of shifted images on disk: one file per shift and strength, so that a killed program resumes."""

import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from histojax.core.errors import RunError
from histojax.core.files import atomic_write
from histojax.core.settings import diff_settings
from histojax.evaluation import predictions
from histojax.inference.predictor import Predictor
from histojax.studies.robustness.images import TestImages
from histojax.studies.robustness.shifts import Shift

FOLDER = "predictions"
UNSHIFTED = "unshifted"
_KEY = b"histojax"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A run's predictions of its test images.

    Attributes:
      unshifted: table of the images as they are.
      shifted: name of the shift -> a table per strength, in order; at strength 0 it is that of `unshifted`.
    """

    unshifted: pd.DataFrame
    shifted: Mapping[str, Sequence[pd.DataFrame]]


def predict(
    predictor: Predictor,
    images: TestImages,
    shifts: Sequence[Shift],
    folder: pathlib.Path,
    settings: Mapping[str, Any],
    *,
    threads: int,
    redo: bool,
) -> Predicted:
    """Predict every shift at every strength that has no file yet.

    Args:
      predictor: the model.
      images: the test images.
      shifts: what to measure.
      folder: of the files.
      settings: what all predictions depend on; must be serialisable as JSON.
      threads: threads that decode and shift.
      redo: whether to overwrite files.

    Raises:
      RunError: a file was written with other settings.
    """
    cells: list[tuple[Shift | None, float]] = [(None, 0.0)]
    cells += [(shift, strength) for shift in shifts for strength in shift.strengths if strength]
    tables: dict[tuple[str, float], pd.DataFrame] = {}
    started, num_predicted = time.monotonic(), 0
    for shift, strength in tqdm(cells, unit="shift", disable=None, mininterval=1):
        path = file_of(folder, shift, strength)
        wanted = dict(settings) | ({} if shift is None else {"shift": shift.definition, "strength": strength})
        found = None if redo else _read(path, wanted)
        if found is None:
            batches = images.shifted(
                shift, strength, made=predictor.input, batch_size=predictor.batch_size, threads=threads
            )
            table = images.table(np.concatenate(list(predictor.stream(batches))), shift)
            _write(path, table, wanted)
            found, num_predicted = table, num_predicted + len(table)
        # Names, patients and labels are those of the unshifted images: in memory they are held once.
        columns = [name for name in map(str, found) if name.startswith(predictions.PREFIX) or name == "unchanged"]
        own = {name: found[name] for name in columns}
        tables["" if shift is None else shift.name, strength] = tables.get(("", 0.0), found).assign(**own)
    if num_predicted:
        seconds = time.monotonic() - started
        _log.info("%d images predicted in %.0f s (%.0f images/s)", num_predicted, seconds, num_predicted / seconds)
    unshifted = tables["", 0.0]
    return Predicted(
        unshifted,
        {shift.name: [tables[shift.name, x] if x else unshifted for x in shift.strengths] for shift in shifts},
    )


def file_of(folder: pathlib.Path, shift: Shift | None, strength: float) -> pathlib.Path:
    """The file of a shift at a strength; without a shift or at strength 0, that of the images as they are."""
    if shift is None or not strength:
        return folder / f"{UNSHIFTED}.parquet"
    label = shift.labels[list(shift.strengths).index(strength)]
    return folder / shift.name / f"{label.replace(' ', '').replace('%', 'pc')}.parquet"


def _write(path: pathlib.Path, table: pd.DataFrame, settings: Mapping[str, Any]) -> None:
    stored = pa.Table.from_pandas(table, preserve_index=False)
    metadata = (stored.schema.metadata or {}) | {_KEY: json.dumps(settings, sort_keys=True).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        pq.write_table(stored.replace_schema_metadata(metadata), temporary)


def _read(path: pathlib.Path, settings: Mapping[str, Any]) -> pd.DataFrame | None:
    """Read a table that was written with these settings; None if there is none.

    Raises:
      RunError: it is damaged, or was written with other settings.
    """
    if not path.exists():
        return None
    try:
        stored = pq.read_table(path)
        saved = json.loads((stored.schema.metadata or {})[_KEY])
        table = predictions.normalise(stored.to_pandas())
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RunError(f"{path}: not predictions of `histojax robustness` ({error}); delete it") from error
    if differing := diff_settings(saved, json.loads(json.dumps(settings))):
        remedy = "Resume with the same settings, choose another --output, or overwrite the results with --redo."
        raise RunError("\n".join([f"{path} was written with different settings:", *differing.values(), remedy]))
    return table
