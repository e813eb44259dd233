"""Preparation of a dataset: from a root of images to ArrayRecord files and a table beside them, reused afterwards."""

import contextlib
import dataclasses
import io
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipelines import archive
from data_pipelines.breakhis import filenames
from data_pipelines.breakhis import scan as breakhis_scan
from data_pipelines.errors import DataError
from data_pipelines.image_folder import layouts as folder_layouts
from data_pipelines.image_folder.scan import Scan, scan
from data_pipelines.image_folder.spec import FolderSpec
from data_pipelines.listing import folder_name
from data_pipelines.liver_tiles import layouts
from data_pipelines.liver_tiles.spec import TilesSpec
from data_pipelines.records import FIELDS, SPLIT, Record, Records, join_labels
from data_pipelines.synthetic import generator
from data_pipelines.synthetic import tiles as tiles_generator
from data_pipelines.synthetic.publish import MARKER
from data_pipelines.tables import SUFFIXES as TABLES
from histojax.core.directories import default_directory, expand_user
from histojax.core.errors import RunError
from histojax.core.locks import exclusive_lock
from histojax.core.printable import printable
from histojax.storage import places

_log = logging.getLogger(__name__)
PIPELINES = ("breakhis", "liver_tiles", "image_folder")
_RECORDS_FILE, _PREPARED = "records.csv", "prepared"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared dataset on disk.

    Attributes:
      directory: folder of the TFDS dataset; `open_images` reads it.
      records: the table, in the order of the stored images.
      summary: what the scan found: bad images and notes; also patients and counts beside the published table
        (BreakHis), or labels (tiles).
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
    images: FolderSpec | None = None,
) -> Prepared:
    """Open the prepared dataset of `root`; prepare it first if it does not exist or if `root` has changed.

    Args:
      pipeline: one of `PIPELINES`.
      root: the archive, its extracted tree or a mirror (other pipelines: a folder, an archive or a table of images);
        empty: the built-in synthetic images.
      magnification: for BreakHis: `40X`, `100X`, `200X`, `400X` or `all`; for others: empty.
      on_bad_image: `error` or `skip`.
      directory: folder of prepared data; empty: `default_directory()`.
      tiles: for liver_tiles: how to read them.
      images: for image_folder: how to read them.

    Raises:
      DataError: the data have a problem.
    """
    if pipeline not in PIPELINES:
        raise DataError(f"data.pipeline='{pipeline}' is not one of {', '.join(PIPELINES)}")
    shared = places.mirror_of(directory, places.RUN, only=f"{_PREPARED}/") if places.is_address(directory) else None
    if shared is not None:
        with exclusive_lock(shared.index.parent):
            shared.pull()
        base = shared.folder
    else:
        base = expand_user(directory).absolute() if directory else default_directory()
    source = places.local(root).resolve() if root else None
    if source and not source.exists():
        raise DataError(f"{source}: no such file or folder (data.root)")
    if pipeline == "breakhis":
        builder, folder = _breakhis(source, base, magnification, on_bad_image)
        description = f"BreakHis images of {_name(root, source)}, {magnification}"
    else:
        if magnification:
            raise DataError(
                f"data.magnification='{magnification}' does not apply to data.pipeline='{pipeline}': leave it empty"
            )
        if pipeline == "liver_tiles":
            builder, folder = _liver_tiles(source, base, tiles or TilesSpec(), on_bad_image)
        else:
            builder, folder = _image_folder(source, base, images or FolderSpec(), on_bad_image)
        kind = "tiles" if pipeline == "liver_tiles" else "images"
        description = f"{kind} of {_name(root, source)}"
    synthetic = (folder / MARKER).is_file()
    if synthetic:
        suffix = f", {magnification}" if magnification else ""
        description = f"SYNTHETIC H&E-like images (computer-made, no diagnosis){suffix}"
    target = pathlib.Path(builder.data_dir)
    with exclusive_lock(base):
        if not target.exists():
            _log.info("preparing %s from %s in %s", pipeline, folder, target)
            _build(builder, folder)
            if shared is not None:
                places.flush(shared)
        records = _read_records(target)
    # If another process prepared the dataset while this one waited, this one's builder lacks its metadata.
    metadata = builder.info.metadata if "scan" in builder.info.metadata else _reopen(target).info.metadata
    return Prepared(target, records, json.loads(metadata["scan"]), synthetic, description)


def _name(root: str, source: pathlib.Path | None) -> str:
    """Return what descriptions call the images: their absolute path, or their address in a bucket."""
    return printable(root if places.is_address(root) else source or "")


# Importing TFDS takes seconds, so it is imported only where a dataset is prepared or opened.


def _breakhis(
    source: pathlib.Path | None, base: pathlib.Path, magnification: str, on_bad_image: str
) -> tuple[Any, pathlib.Path]:
    """Return the builder, and the folder that it reads."""
    from data_pipelines.breakhis import breakhis_dataset_builder as breakhis

    config = breakhis.config_name(magnification, on_bad_image)
    with exclusive_lock(base):
        if source is None:
            magnifications = filenames.MAGNIFICATIONS if magnification == "all" else (magnification,)
            source = generator.generate(
                base / f"synthetic-v{generator.VERSION}-{magnification}",
                generator.SyntheticSpec(magnifications=magnifications),
            )
        folder = archive.unpack(source, base / "extracted")
    found = breakhis_scan.require_pngs(folder)
    _log_report(found.report())
    files, parent = [*found.with_links(), *map(pathlib.Path, found.broken)], base / _PREPARED
    directory = parent / folder_name(parent, files, str(folder), str(breakhis.Builder.VERSION))
    return breakhis.Builder(config=config, data_dir=directory, file_format="array_record"), folder


def _liver_tiles(
    source: pathlib.Path | None, base: pathlib.Path, spec: TilesSpec, on_bad_image: str
) -> tuple[Any, pathlib.Path]:
    """Return the builder, and the folder that it reads."""
    from data_pipelines.compat import quiet_custom_configs
    from data_pipelines.liver_tiles import liver_tiles_dataset_builder as liver_tiles

    if source is None:
        with exclusive_lock(base):
            source = tiles_generator.generate_tiles(base / f"synthetic-tiles-v{tiles_generator.VERSION}")
    source, table = _table_apart(source)
    if table:
        spec = dataclasses.replace(spec, layout="table", table=table)
    config = liver_tiles.config(spec, on_bad_image)
    folder = _unpacked(source, base / "extracted" / "tiles", layouts.IMAGES, base)
    found = layouts.find(folder, spec)
    _log_report(found.report)
    parent = base / _PREPARED
    directory = parent / folder_name(parent, found.files, str(folder), str(liver_tiles.Builder.VERSION))
    with quiet_custom_configs():
        builder = liver_tiles.Builder(config=config, data_dir=directory, file_format="array_record")
    return builder, folder


def _image_folder(
    source: pathlib.Path | None, base: pathlib.Path, spec: FolderSpec, on_bad_image: str
) -> tuple[Any, pathlib.Path]:
    """Return the builder, and the folder that it reads."""
    from data_pipelines.compat import quiet_custom_configs
    from data_pipelines.image_folder import image_folder_dataset_builder as image_folder

    if source is None:
        with exclusive_lock(base):
            only = generator.SyntheticSpec(magnifications=("100X",))
            source = generator.generate(base / f"synthetic-v{generator.VERSION}-100X", only)
        spec = FolderSpec()  # the given one describes the user's images
    folder, spec = _image_root(source, spec, base)
    config = image_folder.config(spec, on_bad_image)
    found = folder_layouts.find(folder, spec)
    _log_report(found.report)
    parent = base / _PREPARED
    facts = (str(folder), f"images {image_folder.Builder.VERSION}")
    directory = parent / folder_name(parent, found.files, *facts)
    with quiet_custom_configs():
        builder = image_folder.Builder(config=config, data_dir=directory, file_format="array_record")
    return builder, folder


def scan_image_folder(root: pathlib.Path, spec: FolderSpec) -> Scan:
    """Read and check the images of a root as `prepare` does, without storing them; bad ones are in the summary.

    Raises:
      DataError: the root does not exist, or the images have a problem.
    """
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    folder, spec = _image_root(root, spec, default_directory())
    return scan(folder, spec, on_bad_image="skip")


def _image_root(source: pathlib.Path, spec: FolderSpec, base: pathlib.Path) -> tuple[pathlib.Path, FolderSpec]:
    """Return the folder of images to which a root leads, and how it is read."""
    if spec.source:
        return (source.parent, dataclasses.replace(spec, table=source.name)) if source.is_file() else (source, spec)
    source, table = _table_apart(source)
    if table:
        spec = dataclasses.replace(spec, table=table)
    return _unpacked(source, base / "extracted" / "images", folder_layouts.SUFFIXES, base), spec


def _table_apart(source: pathlib.Path) -> tuple[pathlib.Path, str]:
    """Return the folder of a source that is a table, and the table's name; other sources as they are, and ""."""
    is_table = source.is_file() and source.name.lower().endswith(TABLES)
    return (source.parent, source.name) if is_table else (source, "")


def _unpacked(source: pathlib.Path, into: pathlib.Path, images: tuple[str, ...], base: pathlib.Path) -> pathlib.Path:
    """Return a folder as it is, or the folder of an archive's images; that is usually the only one in it."""
    with exclusive_lock(base):
        folder = archive.unpack(source, into, (*images, *TABLES))
    if folder != source:
        while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
            folder = inside[0]
    return folder


def _log_report(lines: Sequence[str]) -> None:
    for line in lines:
        _log.warning("%s", line)


def open_images(directory: pathlib.Path) -> Any:
    """Open a random-access, picklable source: `source[i]["image"]` holds the original bytes of image i."""
    import tensorflow_datasets as tfds

    return _reopen(directory).as_data_source(SPLIT, decoders={"image": tfds.decode.SkipDecoding()})


def _reopen(directory: pathlib.Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(directory)


def _build(builder: Any, folder: pathlib.Path) -> None:
    """Let TFDS prepare the dataset; raise a user's error as it was, not as TFDS wraps it."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(manual_dir=folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints about a download that does not happen
            builder.download_and_prepare(download_config=config)
    except DataError:
        raise
    except Exception as error:
        # TFDS re-raises with a prefix and another type; the user's message is in the chain of causes.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DataError | RunError | OSError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from error


def _read_records(directory: pathlib.Path) -> Records:
    """Read the table of a prepared dataset; rebuild it from the stored images if it cannot be read."""
    path = directory / _RECORDS_FILE
    try:
        return Records.read_csv(path)
    except (OSError, DataError):  # not written yet, written by an earlier version, or damaged
        records = Records(_stored_records(directory))
        records.write_csv(path)
        return records


def _stored_records(directory: pathlib.Path) -> Iterator[Record]:
    features = _reopen(directory).info.features
    for row in open_images(directory):
        fields = {field: row[field].decode() for field in FIELDS if field in row and field != "label"}
        if "labels" in row:  # any number of them
            names = [name.decode() for name in row["labels"]]
        else:
            label = row["label"]
            names = [label.decode() if isinstance(label, bytes) else features["label"].int2str(label)]
        yield Record(label=join_labels(names), **fields)
