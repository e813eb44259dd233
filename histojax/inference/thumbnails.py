"""Make thumbnails for a report, from the image files of a table or from the prepared dataset of a run."""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.audit.measures import thumbnail
from data_pipelines.errors import BadImageError, DataError
from data_pipelines.liver_tiles.tile_names import parse_tile_name
from data_pipelines.pixels import decode
from data_pipelines.prepare import open_images
from histojax.core import plugins
from histojax.core.errors import RunError
from histojax.data.sources import open_dataset
from histojax.evaluation.report.sources import Source
from histojax.inference.predict import images as image_files
from histojax.inference.predict.image_reader import ImageReader, UnreadableError

SIDE = 320  # pixels of the longer side
_Row = Mapping[str, str]  # a row of the table of predictions: `image_id` and perhaps `path`
_Loader = Callable[[_Row], np.ndarray | None]  # the pixels of a row's image; None: not found


def thumbnails(source: Source, rows: Sequence[_Row], paths: Sequence[str]) -> tuple[dict[str, bytes], str]:
    """Make the thumbnails of a table's images.

    Args:
      source: the table or run that the images belong to.
      rows: `image_id` and, if the table has the column, `path`.
      paths: folders, lists or archives to search; empty: use the table's own paths, or else the run's prepared dataset.

    Returns:
      JPEG files by image_id, and a message about the last missing one; empty if none is missing.

    Raises:
      RunError: `paths` contain no image.
    """
    jpegs: dict[str, bytes] = {}
    with ImageReader() as reader:
        load, problem = loader(source, rows, paths, reader)
        if load is None:
            return jpegs, problem
        for row in rows:
            try:
                pixels = load(row)
                if pixels is None:
                    problem = "some images were not found"
                else:
                    jpegs[row["image_id"]] = thumbnail(pixels, SIDE)
            except (UnreadableError, BadImageError, DataError, OSError) as error:
                problem = f"{row['image_id']}: {error}"
    return jpegs, problem


def loader(
    source: Source, rows: Sequence[_Row], paths: Sequence[str], reader: ImageReader
) -> tuple[_Loader | None, str]:
    """Choose where images are loaded from, with the arguments of `thumbnails`.

    Returns:
      A function that returns the pixels of a row's image, or None if it is not found; without a choice None and the
      reason.
    """
    if paths:
        return _search_loader(source, paths, reader), ""
    if any(row.get("path") for row in rows):
        return _path_loader(source, reader), ""
    if "data" not in source.config:
        return None, "the table has no column `path`; give the location of its images with --images"
    try:
        return _prepared_loader(source), ""
    except (DataError, RunError, KeyError, OSError) as error:
        return None, f"the run's images are not available ({error}); give their location with --images"


def _search_loader(source: Source, paths: Sequence[str], reader: ImageReader) -> _Loader:
    """Find a row's image, or the image that its tile was cut from, by name among the images that `paths` contain."""
    refs = _index_by_name(image_files.find(paths))
    size = source.config.get("data", {}).get("tiles", {}).get("size")

    def find(name: str) -> np.ndarray | None:
        ref = next((refs[key] for key in image_files.names_of(name) if refs.get(key)), None)
        return None if ref is None else reader.read(ref)

    def load(row: _Row) -> np.ndarray | None:
        for name in (row.get("path", ""), row["image_id"]):
            if (pixels := find(name)) is not None:
                return pixels
        cut = parse_tile_name(row["image_id"])
        if cut is None or (pixels := find(cut[0])) is None:
            return None
        if size is None:
            raise DataError("the size of its tiles is not known from a table; give the run instead")
        return _crop(pixels, *cut[1:], size)

    return load


def _crop(pixels: np.ndarray, x: int, y: int, size: int) -> np.ndarray:
    """Cut a tile out of its image.

    Raises:
      BadImageError: it reaches beyond the image, which is thus not the one that it was cut from.
    """
    height, width = pixels.shape[:2]
    if x + size > width or y + size > height:
        raise BadImageError(f"the image of its name is only {width}×{height} pixels: not the one it was cut from")
    return pixels[y : y + size, x : x + size]


def _path_loader(source: Source, reader: ImageReader) -> _Loader:
    """Read the row's own path, relative to the table."""
    folder = source.path if source.path.is_dir() else source.path.parent

    def load(row: _Row) -> np.ndarray | None:
        if not row.get("path"):
            return None
        path = folder / os.path.expanduser(row["path"])
        return reader.read(image_files.ImageRef(row["image_id"], str(path)))

    return load


def _prepared_loader(source: Source) -> _Loader:
    """Find a row's image in the prepared dataset of the run."""
    settings = ConfigDict(source.config["data"])
    if settings.get("images", {}).get("source"):
        plugins.load(source.config.get("plugins", ()))  # they register the source; nothing else needs them
    dataset = open_dataset(settings, source.classes)
    positions = {str(name): i for i, name in enumerate(dataset.records.column("image_id").tolist())}
    stored = open_images(dataset.prepared.directory)

    def load(row: _Row) -> np.ndarray | None:
        position = positions.get(row["image_id"])
        return None if position is None else decode(stored[position]["image"])

    return load


def _index_by_name(refs: Sequence[image_files.ImageRef]) -> dict[str, image_files.ImageRef | None]:
    """Index images by every name they may be known by; None marks a name that two images share."""
    index: dict[str, image_files.ImageRef | None] = {}
    for ref in refs:
        for key in image_files.names_of(ref.image_id):
            index[key] = None if key in index and index[key] != ref else ref
    return index
