"""Protocols by name: who is tested on, and what becomes of copies; each with a version and a hash.

A result without its protocol says nothing: the same model scores 0.98 or 0.92 on BreakHis. The names are those of
`data.split.protocol`, and each is short for fields of a `SplitSpec`:

* KIND, one of `split_spec.PROTOCOLS`, leaves the rest to `data.split`, where `duplicates=drop` is the default.
* KIND`_with_copies`: images as they come, a picture that is there twice on whatever sides: most of the literature.
* KIND`_deduplicated`: each picture once.
* KIND`_copies_together`: every image, copies on one side.
* `eva`: kaiko's task of four classes at 40X, with the patients that it tests on (there called validation).

With `data.split.kfolds` all of them but `given`, `folds` and `eva` are cross-validation.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.split_spec import PROTOCOLS, Definition, SplitSpec

_COPIES = {"ignore": "with_copies", "drop": "deduplicated", "keep": "copies_together"}
_KINDS = tuple(name for name in PROTOCOLS if name not in ("auto", "listed"))


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A protocol whose name says all of it.

    Attributes:
      name: of `data.split.protocol`.
      kind: `protocol` of its `SplitSpec`.
      duplicates: of its `SplitSpec`.
      version: goes up when the same definition gives other sides.
      task, magnification: of `config.data`, where the protocol is of one only.
      classes: those of the task that it is about; empty: all.
      test_patients: of its `SplitSpec`.
      images: how many train (validation among them) and test in the whole archive, where that is published.
    """

    name: str
    kind: str
    duplicates: str
    version: int = 1
    task: str = ""
    magnification: str = ""
    classes: tuple[str, ...] = ()
    test_patients: tuple[str, ...] = ()
    images: tuple[int, int] = (0, 0)


# https://github.com/kaiko-ai/eva, dataset BreaKHis: its validation patients. No slide of theirs is copied.
_EVA_PATIENTS = (
    *(f"SOB_B_F_14-{slide}" for slide in ("21998CD", "21998EF", "23060CD")),
    *(f"SOB_B_TA_14-{slide}" for slide in ("15275", "16184CD")),
    *(f"SOB_M_DC_14-{slide}" for slide in ("15792", "16716", "16875", "2773", "3909", "5287", "5695")),
    *(f"SOB_M_MC_14-{slide}" for slide in ("18842D", "19979")),
)
_EVA = Protocol(
    "eva",
    "listed",
    "ignore",
    task="subtype",
    magnification="40X",
    classes=("F", "TA", "DC", "MC"),
    test_patients=_EVA_PATIENTS,
    images=(1132, 339),
)
REGISTRY = {
    protocol.name: protocol
    for protocol in (
        *(Protocol(f"{kind}_{word}", kind, copies) for kind in _KINDS for copies, word in _COPIES.items()),
        _EVA,
    )
}


def split_spec(fields: Mapping[str, Any]) -> SplitSpec:
    """`config.data.split`; a full name goes before `duplicates`.

    Raises:
      DataError: no such protocol, a field that means nothing.
    """
    name = fields["protocol"]
    protocol = REGISTRY.get(name)
    if protocol is None:
        check_name(name)
        return SplitSpec(**fields)
    own = {"protocol": protocol.kind, "duplicates": protocol.duplicates, "test_patients": protocol.test_patients}
    return SplitSpec(**dict(fields) | own)


def check_name(name: str) -> None:
    """Verifies that there is such a protocol.

    Raises:
      DataError: there is none.
    """
    short = tuple(kind for kind in PROTOCOLS if kind != "listed")
    if name not in short and name not in REGISTRY:
        raise DataError(
            f"data.split.protocol='{name}' is not one of {', '.join(short)}, eva, nor one of them with "
            f"{', '.join(f'_{word}' for word in _COPIES.values())}"
        )


def classes_of(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes to which the protocol of `config.data` is limited; empty: it is not."""
    protocol = _named(data)
    return protocol.classes if protocol else ()


def check_task(data: Mapping[str, Any]) -> None:
    """Verifies that the task of `config.data` is that of its protocol.

    Raises:
      DataError: another task or magnification than the protocol's.
    """
    protocol = _named(data)
    if protocol is None:
        return
    for field in ("task", "magnification"):
        wanted = getattr(protocol, field)
        if wanted and data[field] != wanted:
            raise DataError(
                f"data.{field}='{data[field]}': the protocol '{protocol.name}' is of data.{field}={wanted}; "
                "set that, or choose another protocol"
            )


def _named(data: Mapping[str, Any]) -> Protocol | None:
    """The protocol of `config.data`, if its name says all of it; a dataset may be opened without any split in mind."""
    return REGISTRY.get(data["split"]["protocol"]) if "split" in data else None


def define(spec: SplitSpec, classes: Sequence[str]) -> Definition:
    """What a resolved spec is called, and the hash of all that it fixes: not the seed, nor which of its folds."""
    found = next(
        (p for p in REGISTRY.values() if (p.kind, p.test_patients) == (spec.protocol, spec.test_patients)
         and p.duplicates == spec.duplicates), None
    )  # fmt: skip
    name, version = (found.name, found.version) if found else (f"{spec.protocol}_{_COPIES[spec.duplicates]}", 1)
    fixed: dict[str, Any] = {
        "name": name,
        "version": version,
        "kind": spec.protocol,
        "duplicates": spec.duplicates,
        "test_patients": sorted(spec.test_patients),
        "val_fraction": spec.val_fraction,
        "kfolds": spec.kfolds,
        "classes": sorted(classes),
    }
    if not spec.kfolds and spec.protocol not in ("given", "folds", "listed"):
        fixed["test_fraction"] = spec.test_fraction
    return Definition(name, version, hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16])


def check_published(name: str, sides: Sequence[str]) -> None:
    """Verifies the number of images of either side, where the whole archive is there.

    Args:
      name: of the protocol.
      sides: of each image of its classes: train, val or test.

    Raises:
      DataError: they are all there, and not divided as published.
    """
    protocol = REGISTRY.get(name)
    if protocol is None or not any(protocol.images) or len(sides) != sum(protocol.images):
        return
    test = sum(side == "test" for side in sides)
    if test != protocol.images[1]:
        raise DataError(
            f"data.split.protocol='{name}': {len(sides) - test} images train and {test} test; "
            f"published are {protocol.images[0]} and {protocol.images[1]}"
        )
