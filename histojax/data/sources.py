"""A dataset as training sees it: a table, classes, a split, and images by position."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import protocols
from data_pipelines.breakhis.filenames import CLASSES, DUPLICATE_SLIDES, SUBTYPES
from data_pipelines.breakhis.scan import describe_missing
from data_pipelines.errors import DataError
from data_pipelines.liver_tiles.spec import TilesSpec
from data_pipelines.prepare import Prepared, open_images, prepare
from data_pipelines.records import Records, label_set
from data_pipelines.split_spec import SplitSpec
from data_pipelines.splits import OTHER_CLASS, Member, Split, make_split, place
from histojax.core.retries import with_backoff

_log = logging.getLogger(__name__)
_TASKS = {"breakhis": ("binary", "subtype"), "liver_tiles": ("multilabel",)}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset with the labels of one task.

    Attributes:
      prepared: where it lies and what its scan found.
      classes: names in the order of the labels.
      labels: one class an image: `int32 [n]`, positions in `classes`, -1 for an image of another class, which stands on
        no side of a split; any number of them: `float32 [n, k]`, 0 or 1.
      cached: the file of `histojax.data.cache`; None: images are decoded when they are read.
    """

    prepared: Prepared
    classes: tuple[str, ...]
    labels: np.ndarray
    cached: pathlib.Path | None = None

    @property
    def records(self) -> Records:
        """The table, a row an image."""
        return self.prepared.records

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.labels.ndim == 2

    @property
    def label_names(self) -> list[str]:
        """The class name of each image, empty where it is of none of them; several joined by "+"."""
        if self.multilabel:
            return self.records.column("label").tolist()
        return [self.classes[label] if label >= 0 else "" for label in self.labels]

    def counts(self, indices: np.ndarray) -> list[int]:
        """Images of each class, or with each label, among those at `indices`."""
        labels = self.labels[indices]
        if self.multilabel:
            return labels.sum(axis=0).astype(int).tolist()
        return np.bincount(labels, minlength=len(self.classes)).tolist()

    def split(self, spec: SplitSpec) -> Split:
        """Divides the dataset anew.

        Raises:
          DataError: as `make_split`; a published protocol that divides the whole archive otherwise than published.
        """
        names = self.classes if self.multilabel else ()
        split = make_split(self.records, self.label_names, self._members(), spec, DUPLICATE_SLIDES, names)
        if split.definition:
            protocols.check_published(split.definition.name, [row.side for row in split.rows if row.side])
        return split

    def place(self, saved: Split) -> Split:
        """Divides the dataset as an earlier run did, whatever root this one was prepared from."""
        placed = place(saved, self.records, DUPLICATE_SLIDES)
        if self.multilabel or (self.labels >= 0).all():
            return placed
        table = zip(placed.rows, self.labels, strict=True)
        rows = [row if label >= 0 else dataclasses.replace(row, side="", note=OTHER_CLASS) for row, label in table]
        return dataclasses.replace(placed, rows=tuple(rows))

    def facts(self, split: Split) -> dict[str, Any]:
        """What results say of the data: where from, how much, what was skipped and left out of the split."""
        summary, left_out = self.prepared.summary, split.left_out()
        words = [f"{len(self.records)} images"]
        if summary["bad_images"]:
            words.append(f"{len(summary['bad_images'])} bad images skipped")
        words += [f"{count} left out ({reason})" for reason, count in left_out.items()]
        facts = {
            "description": f"{self.prepared.description}: {', '.join(words)}",
            "synthetic": self.prepared.synthetic,
            "n_images": len(self.records),
            "n_bad_images_skipped": len(summary["bad_images"]),
            "bad_images": summary["bad_images"],
            "notes": summary["notes"],
            "left_out": left_out,
        }
        if self.multilabel:
            facts["tile_pixels"] = summary["tile_pixels"]
            facts["labels"] = dict(zip(self.classes, self.counts(np.arange(len(self.records))), strict=True))
        elif not self.prepared.synthetic:
            facts["published_counts"] = describe_missing(summary["published"])
        return facts

    def report(self, split: Split) -> list[str]:
        """The facts in lines for the terminal."""
        facts = self.facts(split)
        lines = [f"data: {facts['description']}"]
        if "labels" in facts:
            lines.append("labels: " + ", ".join(f"{name} {count}" for name, count in facts["labels"].items()))
        if "published_counts" in facts:
            lines.append(f"published table: {facts['published_counts']}")
        lines += [f"note: {count} × {note}" for note, count in facts["notes"].items()]
        return lines + [f"skipped {name}: {reason}" for name, reason in facts["bad_images"].items()]

    def _members(self) -> list[Member]:
        if self.multilabel:
            return []
        task_label = "label" if self.classes == CLASSES else "subtype"
        return [
            Member(row["patient_id"], row["case_id"], row[task_label], row["images"])
            for row in self.prepared.summary["patients"]
            if row[task_label] in self.classes or (self.labels >= 0).all()
        ]


def open_dataset(settings: Mapping[str, Any], classes: Sequence[str] = ()) -> Dataset:
    """Prepares what is not there yet and opens it.

    Args:
      settings: `pipeline, root, magnification, on_bad_image, prepared_dir, task, tiles` and, if any, `split` of
        `config.data`; of a protocol that is about some classes of the task, images of the others are left out.
      classes: those of a trained model; empty: those of the task.

    Raises:
      DataError: anything wrong with the data, in words; a class that the model does not know; a protocol of another
        task.
    """
    pipeline, task = settings["pipeline"], settings["task"]
    if pipeline not in _TASKS:
        raise DataError(f"data.pipeline='{pipeline}' is not one of {', '.join(_TASKS)}")
    if task not in _TASKS[pipeline]:
        raise DataError(f"data.task='{task}' is not one of {', '.join(_TASKS[pipeline])} of data.pipeline='{pipeline}'")
    if not classes:
        protocols.check_task(settings)
    prepared = prepare(
        pipeline,
        settings["root"],
        magnification=settings["magnification"],
        on_bad_image=settings["on_bad_image"],
        directory=settings["prepared_dir"],
        tiles=tiles_spec(settings["tiles"]) if task == "multilabel" else None,
    )
    if task == "multilabel":
        return _multilabel(prepared, classes)
    names = prepared.records.column("label" if task == "binary" else "subtype").tolist()
    limited = protocols.classes_of(settings)
    if limited:
        classes = classes or tuple(name for name in limited if name in set(names))
    elif classes:
        unknown = sorted(set(names) - set(classes))
        if unknown:
            raise DataError(
                f"{prepared.summary['root']}: images of {', '.join(unknown)}, which the model does not know "
                f"(its classes: {', '.join(classes)})"
            )
    elif task == "subtype":
        # A part of the dataset may lack a subtype: what nobody can learn or test is no class.
        classes = tuple(name for name in SUBTYPES if name in set(names))
    else:
        classes = CLASSES
    position = {name: i for i, name in enumerate(classes)}
    return Dataset(prepared, tuple(classes), np.array([position.get(name, -1) for name in names], dtype=np.int32))


def tiles_spec(fields: Mapping[str, Any]) -> TilesSpec:
    """`config.data.tiles`, also as a checkpoint holds it."""
    # A config read back from JSON has lists where the spec has tuples.
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in fields.items()}
    return TilesSpec(**given)


def _multilabel(prepared: Prepared, classes: Sequence[str]) -> Dataset:
    labels = tuple(prepared.summary["labels"])
    if classes and set(classes) != set(labels):
        raise DataError(
            f"{prepared.summary['root']}: its labels are {', '.join(labels)}, those of the model {', '.join(classes)}; "
            "a model is evaluated on the labels that it was trained for"
        )
    classes = tuple(classes or labels)
    there = [set(label_set(label)) for label in prepared.records.column("label").tolist()]
    return Dataset(prepared, classes, np.array([[name in one for name in classes] for one in there], dtype=np.float32))


def label_key(labels: np.ndarray) -> str:
    """The name of the truth in a batch: `label` where an image has one, `labels` where it may have several."""
    return "labels" if labels.ndim == 2 else "label"


class ImageSource:
    """Random access for grain: position -> bytes or pixels, label(s), index, mask. Picklable; opened where it is used.

    Args:
      directory: of the prepared dataset.
      indices: positions in the prepared dataset; -1 is padding, masked out.
      labels: `int32 [n]` or `float32 [n, k]` of the whole dataset.
      names: image_id of the whole dataset, for error messages.
      mask_bad: an image that cannot be read is empty and masked out, with a warning.
      cached: of the dataset: pixels are read from there.

    Raises:
      DataError: on access, an image that cannot be read.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        indices: np.ndarray,
        labels: np.ndarray,
        names: Sequence[str],
        mask_bad: bool = False,
        cached: pathlib.Path | None = None,
    ):
        self._directory = directory
        self._indices = indices
        self._labels = labels
        self._names = names
        self._mask_bad = mask_bad
        self._cached = cached

    @functools.cached_property
    def _images(self) -> Any:
        return open_images(self._directory)

    @functools.cached_property
    def _pixels(self) -> "_Pixels":
        assert self._cached is not None
        return _Pixels(self._cached)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_images", "_pixels")}

    def __len__(self) -> int:
        return len(self._indices)

    def _read(self, stored: int) -> bytes | np.ndarray | None:
        return self._images[stored]["image"] if self._cached is None else self._pixels[stored]

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = int(self._indices[position])
        stored, kept = max(index, 0), self._cached or self._directory
        try:
            image = with_backoff(str(kept), lambda: self._read(stored))
            if image is None:  # behind the end of a file that was cut short
                raise OSError("no such record")
        except (RuntimeError, OSError, ValueError) as error:  # ArrayRecord keeps checksums
            words = f"image {self._names[stored]} of the prepared dataset: {error}; delete {kept} to prepare it anew"
            if not self._mask_bad:
                raise DataError(words) from error
            _log.warning("not learned from: %s", words)
            image, index = b"", -1
        return {
            "image": image,
            label_key(self._labels): self._labels[stored],
            "index": np.int64(index),
            "mask": np.bool_(index >= 0),
            "name": self._names[stored],
        }


def shapes_path(pixels: pathlib.Path) -> pathlib.Path:
    """Where the heights and widths lie of the images in a file of pixels."""
    return pixels.with_suffix(".shapes.npy")


class _Pixels:
    """Images of a file that `histojax.data.cache` has written: one after the other, RGB, mapped into memory."""

    def __init__(self, path: pathlib.Path):
        self._shapes = np.load(shapes_path(path))
        self._ends = np.cumsum(self._shapes.prod(axis=1) * 3)
        self._bytes = np.memmap(path, np.uint8, "r")
        if len(self._bytes) != self._ends[-1]:
            raise ValueError(f"{path} was cut short, or has grown")

    def __getitem__(self, position: int) -> np.ndarray:
        height, width = self._shapes[position]
        end = self._ends[position]
        return self._bytes[end - height * width * 3 : end].reshape(height, width, 3)
