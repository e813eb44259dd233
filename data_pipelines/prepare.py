"""Prepared once, reused after: from a root of images to ArrayRecord files and a table beside them."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import pathlib
from typing import Any

from data_pipelines.breakhis import filenames
from data_pipelines.breakhis import scan as breakhis_scan
from data_pipelines.errors import DataError
from data_pipelines.records import Record, Records
from data_pipelines.synthetic import generator

_log = logging.getLogger(__name__)
_PIPELINES = ("breakhis",)
_RECORDS_FILE = "records.csv"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared dataset on disk.

    Attributes:
      directory: of the TFDS dataset; `open_images` reads it.
      records: the table, in the order of the stored images.
      summary: what the scan found (bad images, notes, patients, counts against the published table).
      synthetic: whether a generator made the images.
      description: one line for every output.
    """

    directory: pathlib.Path
    records: Records
    summary: dict[str, Any]
    synthetic: bool
    description: str


def default_directory() -> pathlib.Path:
    """Where prepared datasets live unless told otherwise: `$HISTOJAX_DATA`, else `~/.cache/histojax`."""
    return pathlib.Path(os.environ.get("HISTOJAX_DATA") or "~/.cache/histojax").expanduser()


def prepare(
    pipeline: str,
    root: str,
    *,
    magnification: str,
    on_bad_image: str = "error",
    directory: str = "",
) -> Prepared:
    """Opens the prepared dataset of `root`, preparing it if it is not there or if `root` has changed since.

    Args:
      pipeline: `breakhis`.
      root: the archive, its extracted tree or a mirror; empty: the embedded synthetic images.
      magnification: `40X`, `100X`, `200X`, `400X` or `all`.
      on_bad_image: `error` or `skip`.
      directory: where to keep prepared data; empty: `default_directory()`.

    Raises:
      DataError: anything wrong with the data, in words.
    """
    if pipeline not in _PIPELINES:
        raise DataError(f"data.pipeline='{pipeline}' is not one of {', '.join(_PIPELINES)}")
    # Importing TFDS takes seconds: only whoever prepares or opens a dataset pays for it.
    from data_pipelines.breakhis import breakhis_dataset_builder as breakhis

    config = breakhis.config_name(magnification, on_bad_image)
    base = pathlib.Path(directory).expanduser().absolute() if directory else default_directory()
    if root:
        source = pathlib.Path(root).expanduser().resolve()
        if not source.exists():
            raise DataError(f"{source}: no such file or folder (data.root)")
    else:
        wanted = filenames.MAGNIFICATIONS if magnification == "all" else (magnification,)
        source = generator.generate(
            base / f"synthetic-v{generator.VERSION}-{magnification}",
            generator.SyntheticSpec(magnifications=wanted),
        )
    folder = breakhis_scan.unpack(source, base / "extracted")
    key = breakhis_scan.fingerprint(breakhis_scan.require_pngs(folder), str(folder), str(breakhis.Builder.VERSION))
    builder = breakhis.Builder(config=config, data_dir=base / "prepared" / key, file_format="array_record")
    target = pathlib.Path(builder.data_dir)
    if not target.exists():
        _log.info("preparing %s (%s) from %s in %s", pipeline, magnification, source, target)
        _build(builder, folder)
    records_file = target / _RECORDS_FILE
    if not records_file.exists():
        Records(_stored_records(target)).write_csv(records_file)
    summary = json.loads(builder.info.metadata["scan"])
    marker = (folder / generator.MARKER).is_file()
    kind = "SYNTHETIC H&E-like images (computer-made, no diagnosis)" if marker else f"BreakHis images of {source}"
    return Prepared(target, Records.read_csv(records_file), summary, marker, f"{kind}, {magnification}")


def open_images(directory: pathlib.Path) -> Any:
    """A random-access, picklable source: `source[i]["image"]` are the original bytes of image i."""
    import tensorflow_datasets as tfds

    from data_pipelines.breakhis.breakhis_dataset_builder import SPLIT

    builder = tfds.builder_from_directory(directory)
    return builder.as_data_source(SPLIT, decoders={"image": tfds.decode.SkipDecoding()})


def _build(builder: Any, folder: pathlib.Path) -> None:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(manual_dir=folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of a download; there is none
            builder.download_and_prepare(download_config=config)
    except DataError:
        raise
    except Exception as error:
        # TFDS re-raises with a prefix and another type; the user's message is the cause.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DataError | OSError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from error


def _stored_records(directory: pathlib.Path) -> list[Record]:
    names = ("benign", "malignant")
    return [
        Record(
            label=names[int(row["label"])],
            **{
                field: row[field].decode()
                for field in ("image_id", "subtype", "patient_id", "case_id", "magnification", "pixel_hash")
            },
        )
        for row in open_images(directory)
    ]
