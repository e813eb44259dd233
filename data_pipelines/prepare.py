"""Prepared once, reused after: from a root of images to ArrayRecord files and a table beside them."""

import contextlib
import dataclasses
import fcntl
import io
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from data_pipelines import archive
from data_pipelines.breakhis import filenames
from data_pipelines.breakhis import scan as breakhis_scan
from data_pipelines.errors import DataError
from data_pipelines.listing import fingerprint
from data_pipelines.liver_tiles import layouts, table
from data_pipelines.liver_tiles.spec import TilesSpec
from data_pipelines.records import FIELDS, SPLIT, Record, Records, join_labels
from data_pipelines.synthetic import generator
from data_pipelines.synthetic import tiles as tiles_generator
from data_pipelines.synthetic.publish import MARKER
from histojax.core.directories import default_directory

_log = logging.getLogger(__name__)
_PIPELINES = ("breakhis", "liver_tiles")
_RECORDS_FILE = "records.csv"
_LOCK_FILE = ".lock"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared dataset on disk.

    Attributes:
      directory: of the TFDS dataset; `open_images` reads it.
      records: the table, in the order of the stored images.
      summary: what the scan found (bad images, notes; patients and counts against the published table, or labels).
      synthetic: whether a generator made the images.
      description: one line for every output.
    """

    directory: pathlib.Path
    records: Records
    summary: dict[str, Any]
    synthetic: bool
    description: str


def prepare(
    pipeline: str,
    root: str,
    *,
    magnification: str,
    on_bad_image: str = "error",
    directory: str = "",
    tiles: TilesSpec | None = None,
) -> Prepared:
    """Opens the prepared dataset of `root`, preparing it if it is not there or if `root` has changed since.

    Args:
      pipeline: `breakhis` or `liver_tiles`.
      root: the archive, its extracted tree or a mirror (liver_tiles: a folder, an archive or a table of tiles);
        empty: the embedded synthetic images.
      magnification: of BreakHis: `40X`, `100X`, `200X`, `400X` or `all`; of tiles empty.
      on_bad_image: `error` or `skip`.
      directory: where to keep prepared data; empty: `default_directory()`.
      tiles: of liver_tiles: how to read them.

    Raises:
      DataError: anything wrong with the data, in words.
    """
    if pipeline not in _PIPELINES:
        raise DataError(f"data.pipeline='{pipeline}' is not one of {', '.join(_PIPELINES)}")
    base = pathlib.Path(directory).expanduser().absolute() if directory else default_directory()
    source = pathlib.Path(root).expanduser().resolve() if root else None
    if source and not source.exists():
        raise DataError(f"{source}: no such file or folder (data.root)")
    if pipeline == "breakhis":
        builder, folder = _breakhis(source, base, magnification, on_bad_image)
        kind, suffix = f"BreakHis images of {source}", f", {magnification}"
    else:
        if magnification:
            raise DataError(
                f"data.magnification='{magnification}' has no meaning for data.pipeline='{pipeline}': leave it empty"
            )
        builder, folder = _liver_tiles(source, base, tiles or TilesSpec(), on_bad_image)
        kind, suffix = f"tiles of {source}", ""
    target = pathlib.Path(builder.data_dir)
    with exclusive_lock(base):
        if not target.exists():
            _log.info("preparing %s from %s in %s", pipeline, folder, target)
            _build(builder, folder)
        records_file = target / _RECORDS_FILE
        try:
            records = Records.read_csv(records_file)
        except (OSError, DataError):  # not written yet, by an earlier version, or damaged: it is all in the dataset
            records = Records(_stored_records(target))
            records.write_csv(records_file)
    # The builder of a process that waited for another one to prepare does not know yet what that one wrote.
    metadata = builder.info.metadata if "scan" in builder.info.metadata else _reopened(target).info.metadata
    summary = json.loads(metadata["scan"])
    marker = (folder / MARKER).is_file()
    if marker:
        kind = "SYNTHETIC H&E-like images (computer-made, no diagnosis)"
    return Prepared(target, records, summary, marker, kind + suffix)


# Importing TFDS takes seconds: only whoever prepares or opens a dataset pays for it.


def _breakhis(
    source: pathlib.Path | None, base: pathlib.Path, magnification: str, on_bad_image: str
) -> tuple[Any, pathlib.Path]:
    """The builder, and the folder that it reads."""
    from data_pipelines.breakhis import breakhis_dataset_builder as breakhis

    config = breakhis.config_name(magnification, on_bad_image)
    with exclusive_lock(base):
        if source is None:
            wanted = filenames.MAGNIFICATIONS if magnification == "all" else (magnification,)
            source = generator.generate(
                base / f"synthetic-v{generator.VERSION}-{magnification}",
                generator.SyntheticSpec(magnifications=wanted),
            )
        folder = archive.unpack(source, base / "extracted")
    key = fingerprint(breakhis_scan.require_pngs(folder), str(folder), str(breakhis.Builder.VERSION))
    return breakhis.Builder(config=config, data_dir=base / "prepared" / key, file_format="array_record"), folder


def _liver_tiles(
    source: pathlib.Path | None, base: pathlib.Path, spec: TilesSpec, on_bad_image: str
) -> tuple[Any, pathlib.Path]:
    """As `_breakhis`."""
    from data_pipelines.liver_tiles import liver_tiles_dataset_builder as liver_tiles

    if source is None:
        with exclusive_lock(base):
            source = tiles_generator.generate_tiles(base / f"synthetic-tiles-v{tiles_generator.VERSION}")
    if source.is_file() and source.name.lower().endswith(table.SUFFIXES):
        spec, source = dataclasses.replace(spec, layout="table", table=source.name), source.parent
    config = liver_tiles.config(spec, on_bad_image)
    wanted = (*layouts.IMAGES, *table.SUFFIXES)
    with exclusive_lock(base):
        folder = archive.unpack(source, base / "extracted" / "tiles", wanted)
    if folder != source:  # an archive as a rule holds one folder, and that the tiles
        while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
            folder = inside[0]
    key = fingerprint(layouts.find(folder, spec).files, str(folder), str(liver_tiles.Builder.VERSION))
    absl_log = logging.getLogger("absl")
    level = absl_log.level
    absl_log.setLevel(logging.ERROR)  # TFDS warns of every configuration that a user made, which ours all are
    try:
        builder = liver_tiles.Builder(config=config, data_dir=base / "prepared" / key, file_format="array_record")
    finally:
        absl_log.setLevel(level)
    return builder, folder


@contextlib.contextmanager
def exclusive_lock(base: pathlib.Path) -> Iterator[None]:
    """Of several processes that share a folder, one prepares in it; the others wait and find it done."""
    file = None
    with contextlib.suppress(OSError):  # a folder that cannot be written may hold what was prepared before
        base.mkdir(parents=True, exist_ok=True)
        file = open(base / _LOCK_FILE, "a")  # noqa: SIM115 (closed below)
    with file or contextlib.nullcontext():
        if file is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.info("another process is preparing data in %s: waiting for it", base)
                fcntl.flock(file, fcntl.LOCK_EX)  # the operating system opens it when a process dies
        yield


def open_images(directory: pathlib.Path) -> Any:
    """A random-access, picklable source: `source[i]["image"]` are the original bytes of image i."""
    import tensorflow_datasets as tfds

    return _reopened(directory).as_data_source(SPLIT, decoders={"image": tfds.decode.SkipDecoding()})


def _reopened(directory: pathlib.Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(directory)


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


def _stored_records(directory: pathlib.Path) -> Iterator[Record]:
    names = ("benign", "malignant")
    for row in open_images(directory):
        fields = {field: row[field].decode() for field in FIELDS if field in row and field != "label"}
        several = "labels" in row
        label = join_labels(name.decode() for name in row["labels"]) if several else names[int(row["label"])]
        yield Record(label=label, **fields)
