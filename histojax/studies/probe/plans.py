"""The folds of a probe: which images are fitted, which choose a head's setting, and which are tested."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from data_pipelines import protocols
from data_pipelines.audit.inputs import read_split
from data_pipelines.breakhis.filenames import DUPLICATE_SLIDES
from data_pipelines.official_folds import read_folds
from data_pipelines.splits import Split, make_split
from data_pipelines.stratify import assign
from histojax.core.errors import RunError
from histojax.core.split_hash import GROUP_FIELDS
from histojax.evaluation.metrics import Array
from histojax.studies.probe.inputs import ProbeData

# nanopath divides images as THUNDER does, but tests on the validation side, on which it also chooses.
NANOPATH = {"nanopath": "thunder", "nanopath_accession_clean": "thunder_accession_clean"}
_INNER_FOLDS = 5
_OFFICIAL_FOLDS = range(1, 6)


@dataclasses.dataclass(frozen=True)
class Fold:
    """One division of the images; all arrays hold positions in the table.

    Attributes:
      name: such as "fold 1".
      train: images to fit on, i64 [a].
      val: images that choose a head's setting, i64 [b]; empty: groups of `train` do, in turns.
      test: images to test, i64 [c].
    """

    name: str
    train: Array
    val: Array
    test: Array


@dataclasses.dataclass(frozen=True)
class Plan:
    """The folds of one protocol.

    Attributes:
      protocol: its name.
      in_words: description of each fold's protocol.
      identity: name, version and hash of the protocol; empty: a split from a file.
      folds: the folds.
      groups: what must stay together when validation images are drawn from training: a name per image.
      split_hashes: of each fold.
      warnings: about the folds.
    """

    protocol: str
    in_words: tuple[str, ...]
    identity: str
    folds: tuple[Fold, ...]
    groups: tuple[str, ...]
    split_hashes: tuple[str, ...]
    warnings: tuple[str, ...]


def plan(data: ProbeData, name: str, *, kfolds: int, folds_dir: pathlib.Path | None, seed: int) -> Plan:
    """Divide the images by a named protocol.

    Args:
      data: the images.
      name: a protocol of `data_pipelines.protocols`, or of `NANOPATH`.
      kfolds: folds of the cross-validation, for protocols that draw their folds; 0: one hold-out.
      folds_dir: folder with dsfold1.txt …, for `folds`.
      seed: of the folds.

    Raises:
      DataError: an unknown protocol, or images that it cannot divide.
      RunError: `folds` without a folder.
    """
    split_name = NANOPATH.get(name, name)
    protocols.check_name(split_name)
    registered = protocols.REGISTRY.get(split_name)
    kind = registered.kind if registered else split_name
    if kind == "folds" and folds_dir is None:
        raise RunError("the protocol 'folds' needs --folds_dir DIR, the folder with dsfold1.txt … dsfold5.txt")
    draws = kind not in ("folds", "listed", "given")
    numbers = _OFFICIAL_FOLDS if kind == "folds" else range(kfolds) if draws and kfolds else range(1)
    fields = {"protocol": split_name, "val_fraction": 0.0, "seed": seed, "kfolds": kfolds if draws else 0}
    fields["folds_dir"] = str(folds_dir or "")
    aliases = DUPLICATE_SLIDES if data.breakhis else {}
    splits, names = [], []
    for number in numbers:
        if folds_dir and kind == "folds" and not _has_both_sides(data, folds_dir, number):
            continue
        spec = protocols.split_spec({**fields, "fold": number})
        splits.append(make_split(data.records, data.label_names, [], spec, aliases))
        names.append(f"fold {number}" if len(numbers) > 1 else "hold-out")
    if not splits:
        raise RunError(f"{folds_dir}: no fold has training and test images of these features")
    definition = splits[0].definition
    in_words = tuple(split.protocol for split in splits)
    if name in NANOPATH:
        in_words = tuple(f"its validation side, which also chooses; of the split: {words}" for words in in_words)
    return Plan(
        protocol=name,
        in_words=in_words,
        identity=definition.tag if definition else "",
        folds=tuple(_fold(fold, split, name in NANOPATH) for fold, split in zip(names, splits, strict=True)),
        groups=tuple(row.group for row in splits[0].rows),
        split_hashes=tuple(split.hash for split in splits),
        warnings=tuple(dict.fromkeys(warning for split in splits for warning in split.warnings)),
    )


def plan_of_file(data: ProbeData, path: pathlib.Path) -> Plan:
    """Divide the images by the splits in a file; see `data_pipelines.audit.split_files`.

    Raises:
      DataError: as for `read_split`.
      RunError: a split has no training or no test image.
    """
    _, splits, _ = read_split(path, data.root or pathlib.Path(), data.sources)
    labelled = data.labels >= 0
    folds = []
    for name, sides in splits.items():
        train, val, test = ((np.array(sides) == side) & labelled for side in ("train", "val", "test"))
        if not (train.any() and test.any()):
            raise RunError(f"{path}: the split {name} has {train.sum()} training and {test.sum()} test images here")
        folds.append(Fold(name, *(np.flatnonzero(side) for side in (train, val, test))))
    field = next(field for field in GROUP_FIELDS if not field or all(data.records.column(field)))
    groups = data.records.column(field or "image_id").tolist()
    return Plan(path.name, tuple(splits), "", tuple(folds), tuple(groups), (), ())


def choosing_folds(plan: Plan, fold: Fold, labels: Array, seed: int) -> list[tuple[Array, Array]]:
    """Return pairs of images to fit on and images to choose a head's setting on.

    That is the fold's validation side, if it has one; else up to five folds over the groups of its training images.
    Without two groups of every class, there are none.
    """
    if len(fold.val):
        return [(fold.train, fold.val)]
    cells: dict[str, Counter[tuple[str, str]]] = {}
    for i in fold.train:
        cells.setdefault(plan.groups[i], Counter())[str(labels[i]), ""] += 1
    groups_of_class = Counter(label for cell in cells.values() for label, _ in cell)
    count = min(_INNER_FOLDS, *groups_of_class.values())
    if count < 2:
        return []
    part = assign(cells, [1 / count] * count, np.random.default_rng(seed))
    parts = np.array([part[plan.groups[i]] for i in fold.train])
    return [(fold.train[parts != number], fold.train[parts == number]) for number in range(count)]


def _has_both_sides(data: ProbeData, folder: pathlib.Path, number: int) -> bool:
    """Return whether a published fold trains and tests on some of the images."""
    sides = read_folds(folder, number)
    found = {sides.get(record.image_id) for record, label in zip(data.records, data.labels, strict=True) if label >= 0}
    return {"train", "test"} <= found


def _fold(name: str, split: Split, tests_validation: bool) -> Fold:
    train, val, test = (split.indices(side) for side in ("train", "val", "test"))
    return Fold(name, train, val, val if tests_validation else test)


def fraction_of(train: Array, labels: Array, fraction: float, seed: int) -> Array:
    """Draw a fraction of the training images, stratified by class, with at least one image of each.

    A smaller fraction is a subset of a larger one with the same seed.

    Args:
      train: positions, i64 [a].
      labels: class index of every image of the table.
      fraction: in (0, 1].
      seed: of the order.
    """
    drawn: list[int] = []
    for label in np.unique(labels[train]):
        members = np.random.default_rng([seed, int(label)]).permutation(train[labels[train] == label])
        drawn += members[: max(1, round(fraction * len(members)))].tolist()
    return np.array(sorted(drawn), np.int64)


def describe(plan: Plan, labels: Sequence[int]) -> dict[str, object]:
    """Return the facts of a plan for JSON, with the images of each fold."""
    return {
        "protocol": plan.protocol,
        "protocol_id": plan.identity,
        "in_words": list(plan.in_words),
        "split_hashes": list(plan.split_hashes),
        "folds": [{"name": f.name, "train": len(f.train), "val": len(f.val), "test": len(f.test)} for f in plan.folds],
        "n_images": len(labels),
        "warnings": list(plan.warnings),
    }
