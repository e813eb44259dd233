"""Galleries of what `histojax predict` and `histojax explain` wrote, and of a run's predictions."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.audit.measures import thumbnail
from data_pipelines.errors import BadImageError, DataError
from data_pipelines.pixels import decode
from data_pipelines.records import label_set
from histojax.core.errors import RunError
from histojax.core.files import read_json
from histojax.evaluation import predictions
from histojax.evaluation.report import sources
from histojax.evaluation.view.gallery import Gallery, Item, items_of_table
from histojax.inference.explain.explain import file_names
from histojax.inference.explain.pictures import panels_of
from histojax.inference.predict.image_reader import ImageReader, UnreadableError
from histojax.inference.predict.images import ImageRef
from histojax.inference.thumbnails import SIDE, loader

_MAP_SIDE = 640  # pixels: an overlay's own
_NOTHING = (
    "give the --output of `histojax slide`, `histojax predict` (a table, .csv or .parquet) or `histojax explain`, or "
    "the work directory of a run"
)


@contextlib.contextmanager
def of_predictions(path: pathlib.Path, images: Sequence[str]) -> Iterator[Gallery]:
    """Make the gallery of a table of predictions, or of a run.

    Args:
      path: table, folder that holds one, or work directory.
      images: folders, lists or archives with the images; empty: the run's own, else those that the table names.

    Raises:
      RunError: there is no table, or it cannot be read.
    """
    source = _source(path)
    items = items_of_table(source.table, str(path), source.label_thresholds)
    paths = predictions.as_text(source.table["path"]).tolist() if "path" in source.table else [""] * len(items)
    rows = [{"image_id": item.image_id, "path": place} for item, place in zip(items, paths, strict=True)]
    with ImageReader() as reader:
        load, _ = loader(source, rows, images, reader)

        def picture(index: int, _: int | None) -> bytes | None:
            try:
                pixels = load(rows[index]) if load else _of_name(rows[index]["image_id"], reader)
            except (UnreadableError, BadImageError, DataError, OSError) as error:
                raise RunError(f"{rows[index]['image_id']}: {error}") from error
            return None if pixels is None else thumbnail(pixels, SIDE)

        yield Gallery(path.resolve().name, items, source.classes, picture)


def of_explanations(folder: pathlib.Path) -> Gallery:
    """Make the gallery of a folder that `histojax explain` wrote; its pictures are cut from the overlays in it.

    Raises:
      RunError: `explanations.json` is damaged.
    """
    content = read_json(folder / "explanations.json") or {}
    try:
        classes = [str(name) for name in content["classes"]]
        items = [_explained(image, content) for image in content["images"]]
        places = [(str(image["folder"]), int(image["height"]), int(image["width"])) for image in content["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder / 'explanations.json'} is damaged ({error!r}): explain the images again") from error
    files = dict(zip(classes, file_names(classes), strict=True))
    root = folder.resolve()

    def picture(index: int, number: int | None) -> bytes | None:
        name, height, width = places[index]
        path = folder / name / f"{files[items[index].maps[number or 0]]}.png"
        if not path.resolve().is_relative_to(root) or not path.is_file():
            return None
        try:
            panels = panels_of(decode(path.read_bytes()), height, width)
        except BadImageError as error:
            raise RunError(f"{path}: {error}") from error
        return thumbnail(np.ascontiguousarray(panels[number is not None]), _MAP_SIDE)

    return Gallery(f"{root.name}: {content.get('method', 'Grad-CAM')}", items, classes, picture)


def _source(path: pathlib.Path) -> sources.Source:
    """The table, with the records of its run; its images need no labels."""
    if (path / "results.json").is_file():
        return sources.read(path)
    names = ("predictions.parquet", "predictions.csv")
    file = next((path / name for name in names if (path / name).is_file()), path)
    if file.is_dir() or file.suffix not in (".csv", ".parquet"):
        raise RunError(f"{path}: nothing that can be viewed; {_NOTHING}")
    try:
        table = predictions.load(file)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file or folder; {_NOTHING}") from None
    except OSError:
        raise
    except Exception as error:  # the Parquet and CSV readers raise many kinds of errors on damaged bytes
        raise RunError(f"{file}: not a table of predictions ({type(error).__name__}: {error})") from error
    return sources.Source(path.stem, file, table, positive=None, thresholds=None, threshold_origin="")


def _of_name(image_id: str, reader: ImageReader) -> np.ndarray | None:
    """The image whose path is its name, as `histojax predict` names images; None if there is no such file."""
    path = os.path.expanduser(image_id)
    return reader.read(ImageRef(image_id, path)) if os.path.isfile(path) else None


def _explained(image: Mapping[str, Any], content: Mapping[str, Any]) -> Item:
    """An image of `explanations.json`."""
    found = {str(target["class"]): float(target["probability"]) for target in image["targets"]}
    thresholds, label = content.get("thresholds"), image["label"]
    predicted = None
    if content.get("target") in ("predicted", "all"):  # else only one class is explained, whichever is predicted
        predicted = frozenset([max(found, key=lambda name: found[name])])
        if thresholds is not None:
            predicted = frozenset(name for name, p in found.items() if p >= thresholds[name])
    truth = frozenset([label] if label in content["classes"] else label_set(label or ""))
    known = bool(label) and truth <= set(content["classes"])
    size = f"{image['width']} × {image['height']} pixels"
    return Item(str(image["image_id"]), found, truth if known else None, predicted, [size], maps=list(found))
