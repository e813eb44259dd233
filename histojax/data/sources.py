"""A dataset as training uses it: a table, classes, labels and a split."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import protocols
from data_pipelines.audit.crossing import find_crossing
from data_pipelines.breakhis.filenames import CLASSES, DUPLICATE_SLIDES, SUBTYPES
from data_pipelines.breakhis.scan import describe_missing
from data_pipelines.errors import DataError
from data_pipelines.image_folder.spec import folder_spec, positive_class
from data_pipelines.liver_tiles.spec import TilesSpec
from data_pipelines.prepare import Prepared, prepare
from data_pipelines.records import Records, label_set
from data_pipelines.split_groups import Member
from data_pipelines.split_spec import SplitSpec
from data_pipelines.splits import OTHER_CLASS, Split, make_split, place
from histojax.core.positive import positive_by_name

_TASKS = {"breakhis": ("binary", "subtype"), "liver_tiles": ("multilabel",), "image_folder": ("classes",)}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset with the labels of one task.

    Attributes:
      prepared: the dataset on disk and what its scan found.
      classes: names in the order of the labels.
      labels: single-label: `int32 [n]`, positions in `classes`, -1 for an image of another class, which is on no side
        of a split; multi-label: `float32 [n, k]`, 0 or 1.
      cached: the file of `histojax.data.cache`; None: images are decoded when they are read.
    """

    prepared: Prepared
    classes: tuple[str, ...]
    labels: np.ndarray
    cached: pathlib.Path | None = None

    @property
    def records(self) -> Records:
        """The table, one row per image."""
        return self.prepared.records

    @functools.cached_property
    def hash(self) -> str:
        """Hash of the table (names, pixels, labels, patients), independent of its order and place: 16 hex digits."""
        lines = sorted(json.dumps(record.identity) for record in self.records)
        return hashlib.sha256("\n".join([json.dumps(self.classes), *lines]).encode()).hexdigest()[:16]

    @property
    def multilabel(self) -> bool:
        """Whether an image may have any number of labels."""
        return self.labels.ndim == 2

    @property
    def label_names(self) -> list[str]:
        """Class name of each image, empty if it is of none of the classes; several labels are joined by "+"."""
        if self.multilabel:
            return self.records.column("label").tolist()
        return [self.classes[label] if label >= 0 else "" for label in self.labels]

    def counts(self, indices: np.ndarray) -> list[int]:
        """Count the images of each class, or with each label, among those at `indices`."""
        labels = self.labels[indices]
        if self.multilabel:
            return labels.sum(axis=0).astype(int).tolist()
        return np.bincount(labels, minlength=len(self.classes)).tolist()

    def split(self, spec: SplitSpec) -> Split:
        """Make a new split.

        Raises:
          DataError: as for `make_split`; or a published protocol divides the whole archive differently than published.
        """
        names = self.classes if self.multilabel else ()
        split = make_split(self.records, self.label_names, self._members(), spec, DUPLICATE_SLIDES, names)
        if split.definition:
            protocols.check_published(split.definition.name, [row.side for row in split.rows if row.side])
        return split

    def place(self, saved: Split) -> Split:
        """Apply the split of an earlier run, whatever root this dataset was prepared from."""
        placed = place(saved, self.records, DUPLICATE_SLIDES)
        if self.multilabel or (self.labels >= 0).all():
            return placed
        table = zip(placed.rows, self.labels, strict=True)
        rows = [row if label >= 0 else dataclasses.replace(row, side="", note=OTHER_CLASS) for row, label in table]
        return dataclasses.replace(placed, rows=tuple(rows))

    def check_unchanged(self, split: Split, meta: Mapping[str, Any], workdir: pathlib.Path) -> None:
        """Verify that a run that resumes still has its data: the same names, pixels, labels, patients and sides.

        Args:
          split: the split as it is now.
          meta: metadata of the run's checkpoint: `data` and `split`.
          workdir: the run's work directory, for the message.

        Raises:
          DataError: they have changed.
        """
        now = {"split": split.hash, "data": self.hash}
        then = {"split": meta["split"]["hash"], "data": meta["data"].get("hash")}  # older checkpoints have no data hash
        changed = [f"{key} {then[key]}, now {now[key]}" for key in now if then[key] not in (None, now[key])]
        if changed:
            raise DataError(
                f"{workdir}: the data or its split has changed since the run began ({'; '.join(changed)}); point "
                "--config.data.root at the same images, or use a new --workdir"
            )

    def crossing(self, split: Split) -> list[str]:
        """Describe the pictures that look the same and are on two sides of a split, one line each."""
        names = self.records.column("image_id")
        return [
            f"{names[pair.first]} ({pair.sides[0]}) and {names[pair.second]} ({pair.sides[1]}, {pair.view})"
            for pair in find_crossing(self.prepared.directory, [row.side for row in split.rows])
        ]

    def facts(self, split: Split) -> dict[str, Any]:
        """Return what results say about the data: source, size, skipped images, images left out of the split."""
        summary, left_out = self.prepared.summary, split.left_out()
        parts = [f"{len(self.records)} images"]
        if summary["bad_images"]:
            parts.append(f"{len(summary['bad_images'])} bad images skipped")
        parts += [f"{count} left out ({reason})" for reason, count in left_out.items()]
        facts = {
            "description": f"{self.prepared.description}: {', '.join(parts)}",
            "synthetic": self.prepared.synthetic,
            "hash": self.hash,
            "n_images": len(self.records),
            "n_bad_images_skipped": len(summary["bad_images"]),
            "bad_images": summary["bad_images"],
            "notes": summary["notes"],
            "left_out": left_out,
        }
        if self.multilabel:
            facts["tile_pixels"] = summary["tile_pixels"]
            facts["labels"] = dict(zip(self.classes, self.counts(np.arange(len(self.records))), strict=True))
        elif "classes" in summary:
            facts["classes"] = dict(zip(self.classes, self.counts(np.arange(len(self.records))), strict=True))
        elif not self.prepared.synthetic:
            facts["published_counts"] = describe_missing(summary["published"])
        return facts

    def report(self, split: Split) -> list[str]:
        """Return the facts as lines for the terminal."""
        facts = self.facts(split)
        lines = [f"data: {facts['description']}"]
        for kind in ("labels", "classes"):
            if kind in facts:
                lines.append(f"{kind}: " + ", ".join(f"{name} {count}" for name, count in facts[kind].items()))
        if "published_counts" in facts:
            lines.append(f"published table: {facts['published_counts']}")
        lines += [f"note: {count} × {note}" for note, count in facts["notes"].items()]
        return lines + [f"skipped {name}: {reason}" for name, reason in facts["bad_images"].items()]

    def _members(self) -> list[Member]:
        if "patients" not in self.prepared.summary:
            return []
        task_label = "label" if self.classes == CLASSES else "subtype"
        return [
            Member(row["patient_id"], row["case_id"], row[task_label], row["images"])
            for row in self.prepared.summary["patients"]
            if row[task_label] in self.classes or (self.labels >= 0).all()
        ]


def open_dataset(settings: Mapping[str, Any], classes: Sequence[str] = ()) -> Dataset:
    """Open a dataset; prepare it first if necessary.

    Args:
      settings: `pipeline, root, magnification, on_bad_image, prepared_dir, task, tiles, images` and optionally
        `split` of `config.data`. If the protocol of `split` uses only some classes of the task, images of the others
        are left out.
      classes: the classes of a trained model; empty: those of the task.

    Raises:
      DataError: the data have a problem, the model does not know one of their classes, or the protocol is for another
        task.
    """
    pipeline, task = settings["pipeline"], settings["task"]
    if pipeline not in _TASKS:
        raise DataError(f"data.pipeline='{pipeline}' is not one of {', '.join(_TASKS)}")
    if task not in _TASKS[pipeline]:
        raise DataError(
            f"data.task='{task}' is not one of {', '.join(_TASKS[pipeline])}, the tasks of data.pipeline='{pipeline}'"
        )
    if not classes:
        protocols.check_task(settings)
    prepared = prepare(
        pipeline,
        settings["root"],
        magnification=settings["magnification"],
        on_bad_image=settings["on_bad_image"],
        directory=settings["prepared_dir"],
        tiles=tiles_spec(settings["tiles"]) if task == "multilabel" else None,
        images=folder_spec(settings["images"]) if task == "classes" else None,
    )
    if task == "multilabel":
        return _multilabel(prepared, classes)
    names = prepared.records.column("subtype" if task == "subtype" else "label").tolist()
    classes = _single_label_classes(settings, prepared, set(names), classes)
    position = {name: i for i, name in enumerate(classes)}
    return Dataset(prepared, tuple(classes), np.array([position.get(name, -1) for name in names], dtype=np.int32))


def tiles_spec(fields: Mapping[str, Any]) -> TilesSpec:
    """Build the spec of `config.data.tiles`; a config read from a checkpoint has lists instead of tuples."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in fields.items()}
    return TilesSpec(**values)


def _single_label_classes(
    settings: Mapping[str, Any], prepared: Prepared, present: set[str], classes: Sequence[str]
) -> Sequence[str]:
    """Return the classes of a single-label dataset.

    Args:
      settings: as for `open_dataset`.
      prepared: the dataset.
      present: names of the classes that have images.
      classes: the classes of a trained model; empty: none.

    Raises:
      DataError: the model does not know a class that has images.
    """
    limited = protocols.classes_of(settings)
    if limited:
        return classes or tuple(name for name in limited if name in present)
    if classes:
        unknown = sorted(present - set(classes))
        if unknown:
            raise DataError(
                f"{prepared.summary['root']}: contains images of {', '.join(unknown)}, which the model does not know "
                f"(its classes: {', '.join(classes)})"
            )
        return classes
    if settings["task"] == "classes":
        positive = positive_class(settings["images"]) if settings["root"] else ""  # synthetic images have their own
        return _ordered(sorted(present), positive, prepared.summary["root"])
    if settings["task"] == "subtype":
        # A part of the dataset may lack a subtype; a class without images is dropped.
        return tuple(name for name in SUBTYPES if name in present)
    return CLASSES


def _ordered(classes: list[str], positive: str, root: str) -> Sequence[str]:
    """Return classes in the order of the labels: of two, the positive one is the second.

    Raises:
      DataError: `positive` is none of two classes, or contradicts a class that every table takes as the positive one.
    """
    if positive and (len(classes) != 2 or positive not in classes):
        raise DataError(
            f"data.images.positive='{positive}' is for two classes, one of which it names; those of {root} are "
            f"{', '.join(classes)}"
        )
    named = positive_by_name(classes)  # by every table of results
    if positive and named and positive != named:
        raise DataError(f"data.images.positive='{positive}': with a class '{named}', that one is positive")
    chosen = named if named and len(classes) == 2 else positive
    return sorted(classes, key=lambda name: name == chosen)


def _multilabel(prepared: Prepared, classes: Sequence[str]) -> Dataset:
    labels = tuple(prepared.summary["labels"])
    if classes and set(classes) != set(labels):
        raise DataError(
            f"{prepared.summary['root']}: its labels are {', '.join(labels)}, but the model's are "
            f"{', '.join(classes)}; evaluate a model on the labels that it was trained for"
        )
    classes = tuple(classes or labels)
    sets = [set(label_set(label)) for label in prepared.records.column("label").tolist()]
    return Dataset(prepared, classes, np.array([[name in one for name in classes] for one in sets], dtype=np.float32))
