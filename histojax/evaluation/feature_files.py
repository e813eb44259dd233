"""Features of images on disk: what `histojax embed` writes and `histojax probe` reads, as Parquet or npz.

Both forms hold one row per image: `image_id`, the facts `FACTS` (strings; null in Parquet, "" in npz where unknown) and
`features`, float32 of the same length in every row. Parquet holds the facts about the features as JSON in the file's
metadata under the key `histojax`, npz as the array `metadata`.
"""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from histojax.core.errors import RunError
from histojax.core.files import atomic_write

SUFFIXES = (".parquet", ".npz")
FACTS = ("label", "patient_id", "case_id", "slide_id", "split")
_COLUMNS = ("image_id", *FACTS)
_KEY = b"histojax"
_BLOCK_ROWS = 4096
_REMEDY = "name a file that `histojax embed` wrote"


class FeatureFileError(RunError):
    """A file of features cannot be used; the message names the file, the field and the remedy."""


@dataclass(frozen=True)
class FeatureTable:
    """Features of images, one row per image.

    Attributes:
      facts: the columns `image_id` and `FACTS`: strings, None where unknown.
      features: f32 [n, d]; it may be mapped from a file.
      metadata: how the features were made: `model`, `layer`, `weights_sha256`, `image_size`, `version`, `source` and
        more. Empty for a file of another program.
    """

    facts: pd.DataFrame
    features: np.ndarray
    metadata: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.features)


def check_path(path: pathlib.Path, option: str) -> None:
    """Check the name of a file of features.

    Args:
      path: the file.
      option: what named it, for the message, such as "--output".

    Raises:
      FeatureFileError: it ends in neither .parquet nor .npz, or it is a folder.
    """
    if path.suffix not in SUFFIXES or path.is_dir():
        raise FeatureFileError(f"{option}={path} is not a file name that ends in {' or '.join(SUFFIXES)}")


def write(path: pathlib.Path, table: FeatureTable) -> None:
    """Write features atomically, a block of rows at a time. The same table always gives the same bytes.

    Args:
      path: ends in .parquet or .npz.
      table: the features.

    Raises:
      FeatureFileError: `path` has another suffix, or is a folder.
    """
    check_path(path, "the file of features")
    facts = table.facts.reindex(columns=list(_COLUMNS)).astype(object)
    facts = facts.where(facts.notna(), None)
    metadata = json.dumps(dict(table.metadata), sort_keys=True, allow_nan=False)
    with atomic_write(path) as temporary:
        (_write_parquet if path.suffix == ".parquet" else _write_npz)(temporary, facts, table.features, metadata)


def read(path: pathlib.Path) -> FeatureTable:
    """Read a file of features completely. Facts that the file lacks are None.

    Args:
      path: ends in .parquet or .npz.

    Raises:
      FeatureFileError: the file is missing, damaged or of another kind; a column is missing; rows differ in length; an
        image has two rows; or a feature is NaN or infinite.
    """
    check_path(path, "the file of features")
    try:
        table = _read_parquet(path) if path.suffix == ".parquet" else _read_npz(path)
    except FileNotFoundError as error:
        raise FeatureFileError(f"{path} does not exist; {_REMEDY}") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise FeatureFileError(f"{path}: cannot be read as features ({error}); {_REMEDY}") from error
    _check(path, table)
    return table


def _check(path: pathlib.Path, table: FeatureTable) -> None:
    names = table.facts["image_id"]
    if table.features.ndim != 2 or table.features.shape != (len(names), table.features.shape[-1]):
        raise FeatureFileError(
            f"{path}: `features` has shape {table.features.shape} for {len(names)} images, not (images, features)"
        )
    if names.isna().any() or names.duplicated().any():
        which = names[names.duplicated() | names.isna()].iloc[0]
        raise FeatureFileError(f"{path}: image_id {which!r} is missing or has several rows; give each image once")
    if not (finite := np.isfinite(table.features).all(axis=1)).all():
        raise FeatureFileError(
            f"{path}: the features of {names[~finite].iloc[0]} are NaN or infinite; the model that made them diverged"
        )


def _write_parquet(path: pathlib.Path, facts: pd.DataFrame, features: np.ndarray, metadata: str) -> None:
    width = features.shape[1]
    fields = [pa.field(name, pa.string()) for name in _COLUMNS]
    fields.append(pa.field("features", pa.list_(pa.float32(), width)))
    schema = pa.schema(fields, metadata={_KEY: metadata.encode()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, max(len(features), 1), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            arrays = [pa.array(facts[name].iloc[rows].tolist(), pa.string()) for name in _COLUMNS]
            flat = pa.array(np.ascontiguousarray(features[rows], np.float32).reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, width))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _read_parquet(path: pathlib.Path) -> FeatureTable:
    stored = pq.read_table(path)
    if missing := [name for name in ("image_id", "features") if name not in stored.column_names]:
        raise FeatureFileError(f"{path}: no column {' and no column '.join(missing)}; {_REMEDY}")
    column = stored.column("features").combine_chunks()
    lengths = column.value_lengths() if hasattr(column, "value_lengths") else None
    if column.null_count or (lengths is not None and len(lengths) and len(set(lengths.to_pylist())) > 1):
        raise FeatureFileError(f"{path}: the rows of `features` differ in length; {_REMEDY}")
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    width = column.type.list_size if pa.types.is_fixed_size_list(column.type) else len(values) // max(len(column), 1)
    facts = {
        name: stored.column(name).to_pylist() if name in stored.column_names else [None] * len(stored)
        for name in _COLUMNS
    }
    text = (stored.schema.metadata or {}).get(_KEY, b"{}")
    return FeatureTable(pd.DataFrame(facts, dtype=object), values.reshape(len(column), width), json.loads(text))


def _write_npz(path: pathlib.Path, facts: pd.DataFrame, features: np.ndarray, metadata: str) -> None:
    arrays = {name: np.array([value or "" for value in facts[name]], dtype=str) for name in _COLUMNS}
    # Not np.savez, which needs a mapped array in memory. Members have no times, so equal tables give equal bytes.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in [*arrays.items(), ("metadata", np.array(metadata))]:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        with archive.open("features.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": features.shape}
            np.lib.format.write_array_header_1_0(member, header)
            for start in range(0, len(features), _BLOCK_ROWS):
                member.write(np.ascontiguousarray(features[start : start + _BLOCK_ROWS], "<f4").tobytes())


def _read_npz(path: pathlib.Path) -> FeatureTable:
    with np.load(path, allow_pickle=False) as archive:
        if missing := [name for name in ("image_id", "features") if name not in archive.files]:
            raise FeatureFileError(f"{path}: no array {' and no array '.join(missing)}; {_REMEDY}")
        names = archive["image_id"].tolist()
        facts = {
            name: [value or None for value in archive[name].tolist()] if name in archive.files else [None] * len(names)
            for name in _COLUMNS
        }
        metadata = json.loads(str(archive["metadata"])) if "metadata" in archive.files else {}
        return FeatureTable(pd.DataFrame(facts, dtype=object), archive["features"].astype(np.float32), metadata)
