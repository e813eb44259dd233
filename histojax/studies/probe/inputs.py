"""Files of features, and what is known about their images."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import protocols
from data_pipelines.audit.inputs import Source, from_name
from data_pipelines.breakhis import filenames
from data_pipelines.images import decode_rgb, pixel_hash, read_file
from data_pipelines.records import Record, Records
from histojax.core.errors import RunError
from histojax.evaluation import feature_files
from histojax.evaluation.feature_files import FeatureTable
from histojax.evaluation.metrics import Array


@dataclasses.dataclass(frozen=True)
class ProbeData:
    """The images that all files of features share, in the order of their names.

    Attributes:
      records: the table. Without images, `pixel_hash` is that of the first file's features.
      classes: class names.
      labels: position in `classes`, i64 [n]; -1: of a class that the protocol is not about.
      features: name of the file -> features f32 [n, d].
      metadata: name of the file -> how its features were made.
      sources: the images as files; their paths are below `root`.
      root: of the images; None: there are only their features.
      hash: of records and classes, 16 hex digits.
    """

    records: Records
    classes: tuple[str, ...]
    labels: Array
    features: dict[str, Array]
    metadata: dict[str, Mapping[str, Any]]
    sources: tuple[Source, ...]
    root: pathlib.Path | None

    @property
    def hash(self) -> str:
        """Hash of the table (names, pixels, labels, patients): 16 hex digits."""
        lines = [json.dumps(record.identity) for record in self.records]
        return hashlib.sha256("\n".join([json.dumps(self.classes), *lines]).encode()).hexdigest()[:16]

    @property
    def label_names(self) -> list[str]:
        """Class name of each image, empty if the protocol is not about its class."""
        return [self.classes[label] if label >= 0 else "" for label in self.labels]

    @property
    def breakhis(self) -> bool:
        """Whether every image has a BreakHis name."""
        return all(source.breakhis for source in self.sources)

    def pixels(self, position: int) -> Array:
        """Read an image, u8 [h, w, 3]."""
        return decode_rgb(read_file(self.sources[position].path))


def read(
    files: Mapping[str, pathlib.Path], images: pathlib.Path | None, *, task: str = "binary", magnification: str = ""
) -> ProbeData:
    """Read files of features of the same images.

    Args:
      files: name of the features -> file that `histojax embed` wrote.
      images: the images' root, to know equal pixels and to measure colours; None: equal features mean equal pixels.
      task: for BreakHis: `binary` or `subtype`. Other images have the classes of the files' column `label`.
      magnification: for BreakHis: only images of this magnification; empty: all.

    Raises:
      FeatureFileError: a file cannot be read.
      RunError: the files hold different images, an image has no label, or an image is missing below `images`.
    """
    tables = {name: feature_files.read(path) for name, path in files.items()}
    names = _shared_names(files, tables)
    first = next(iter(files.values()))
    facts = next(iter(tables.values())).facts.set_index("image_id").loc[names]
    cells = [{str(key): value or "" for key, value in row.items()} for row in facts.to_dict("records")]
    sources = [_image(name, row, images) for name, row in zip(names, cells, strict=True)]
    kept = [i for i, s in enumerate(sources) if not magnification or s.magnification == magnification]
    if not kept:
        raise RunError(f"{first}: no image of magnification {magnification}")
    sources, cells = [sources[i] for i in kept], [cells[i] for i in kept]
    features = {name: _features(table, [names[i] for i in kept]) for name, table in tables.items()}
    keys = _pixel_hashes(sources, images, next(iter(features.values())))
    records = Records(_record(s, row, key) for s, row, key in zip(sources, cells, keys, strict=True))
    classes = _classes(records, sources, task, first)
    place = {name: i for i, name in enumerate(classes)}
    field = "subtype" if task == "subtype" and all(s.breakhis for s in sources) else "label"
    labels = np.array([place.get(name, -1) for name in records.column(field).tolist()], np.int64)
    metadata = {name: table.metadata for name, table in tables.items()}
    return ProbeData(records, classes, labels, features, metadata, tuple(sources), images)


def limit_classes(data: ProbeData, classes: Sequence[str]) -> ProbeData:
    """Keep only some classes, in this order; images of others stay in the table without a label."""
    present = set(data.label_names)
    limited = tuple(name for name in classes if name in present)
    place = {name: i for i, name in enumerate(limited)}
    labels = np.array([place.get(name, -1) for name in data.label_names], np.int64)
    return dataclasses.replace(data, classes=limited, labels=labels)


def _shared_names(files: Mapping[str, pathlib.Path], tables: Mapping[str, FeatureTable]) -> list[str]:
    """Return the sorted names of the images, which every file must hold.

    Raises:
      RunError: the files hold different images.
    """
    (first, table), *others = tables.items()
    names = set(table.facts["image_id"])
    for second, other in others:
        if differing := names ^ set(other.facts["image_id"]):
            raise RunError(
                f"{files[first]} and {files[second]} hold different images ({len(differing)} are in one of them only, "
                f"such as {min(differing)}); embed the same images for both"
            )
    if not names:
        raise RunError(f"{files[first]}: holds no image")
    return sorted(names)


def _features(table: FeatureTable, names: Sequence[str]) -> Array:
    """Return the features of the named images, in their order."""
    order = {name: i for i, name in enumerate(table.facts["image_id"])}
    return table.features[[order[name] for name in names]]


def _image(name: str, row: Mapping[str, str], root: pathlib.Path | None) -> Source:
    path = (root or pathlib.Path()) / name
    return from_name(Source(path, name, name, row["label"], row["patient_id"], row["case_id"]))


def _pixel_hashes(sources: Sequence[Source], root: pathlib.Path | None, features: Array) -> list[str]:
    """Hash the pixels of each image; without images, its features, which are equal for equal pixels."""
    if root is None:
        return [hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest() for row in features]
    if missing := [source.name for source in sources if not source.path.is_file()]:
        raise RunError(f"{root}: {len(missing)} of {len(sources)} images are missing, such as {missing[0]}")
    return [pixel_hash(decode_rgb(read_file(source.path))) for source in sources]


def _record(source: Source, row: Mapping[str, str], key: str) -> Record:
    known = source.breakhis
    return Record(
        image_id=source.image_id,
        label=known.label if known else source.label,
        subtype=known.subtype if known else "",
        patient_id=source.patient_id,
        case_id=source.case_id,
        magnification=source.magnification,
        pixel_hash=key,
        slide_id=row["slide_id"],
        given_split=row["split"],
    )


def _classes(records: Records, sources: Sequence[Source], task: str, path: pathlib.Path) -> tuple[str, ...]:
    """Return the classes of the task.

    Raises:
      RunError: an image has no label.
    """
    if all(source.breakhis for source in sources):
        present = set(records.column("subtype" if task == "subtype" else "label").tolist())
        order = filenames.SUBTYPES if task == "subtype" else filenames.CLASSES
        return tuple(name for name in order if name in present)
    if task == "subtype":
        raise RunError(f"{path}: --task subtype needs images with BreakHis's names")
    labels = records.column("label").tolist()
    if unlabelled := labels.count(""):
        raise RunError(
            f"{path}, column label: empty for {unlabelled} of {len(labels)} images; embed images with labels"
        )
    return tuple(sorted(set(labels)))


def check_protocol(name: str, task: str, magnification: str) -> tuple[str, str]:
    """Return task and magnification, as a protocol with its own ones fixes them.

    Raises:
      RunError: they contradict the protocol.
    """
    protocol = protocols.REGISTRY.get(name)
    wanted = (protocol.task, protocol.magnification) if protocol else ("", "")
    for flag, given, own in (("--task", task, wanted[0]), ("--magnification", magnification, wanted[1])):
        if given and own and given != own:
            raise RunError(f"{flag}={given}: the protocol '{name}' needs {flag} {own}; drop the flag")
    return wanted[0] or task or "binary", wanted[1] or magnification
