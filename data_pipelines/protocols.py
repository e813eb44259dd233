"""Evaluation protocols by name: which images are tested, and how duplicates are handled; each has a version and a hash.

A result is meaningless without its protocol: the same model scores 0.98 or 0.92 on BreakHis. The names are the values
of `data.split.protocol`, and each stands for fields of a `SplitSpec`:

* KIND, one of `split_spec.PROTOCOLS`: the rest is set by `data.split`, where `duplicates=drop` is the default.
* KIND`_with_copies`: duplicates are not handled, so copies may be on different sides, as in most of the literature.
* KIND`_deduplicated`: each picture once.
* KIND`_copies_together`: every image; copies are on the same side.
* `eva`: kaiko's task of four classes at 40X, with its own test patients (called validation there).
* `thunder`: eva's task and test patients, with validation patients; shared by THUNDER and nanopath.
* `eva_accession_clean`, `thunder_accession_clean`: without training and validation images of tested cases.

With `data.split.kfolds`, all but `given`, `folds` and the protocols with listed patients are cross-validation.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.split_spec import PROTOCOLS, Definition, SplitSpec

_SUFFIXES = {"ignore": "with_copies", "drop": "deduplicated", "keep": "copies_together"}
_IMPLIED = ("duplicates", "test_patients", "val_patients", "accession_clean")
_KINDS = tuple(name for name in PROTOCOLS if name not in ("auto", "listed"))


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A protocol that its name defines completely.

    Attributes:
      name: value of `data.split.protocol`.
      kind: `SplitSpec.protocol`.
      duplicates: `SplitSpec.duplicates`.
      version: increases when the same definition gives other sides.
      task: the only legal `config.data.task`; empty: any.
      magnification: the only legal `config.data.magnification`; empty: any.
      classes: the classes of the task that the protocol uses; empty: all.
      test_patients: `SplitSpec.test_patients`.
      val_patients: `SplitSpec.val_patients`.
      accession_clean: `SplitSpec.accession_clean`.
      images: published numbers of training images (including validation) and test images in the whole archive; zeros if
        not published.
    """

    name: str
    kind: str
    duplicates: str
    version: int = 1
    task: str = ""
    magnification: str = ""
    classes: tuple[str, ...] = ()
    test_patients: tuple[str, ...] = ()
    val_patients: tuple[str, ...] = ()
    accession_clean: bool = False
    images: tuple[int, int] = (0, 0)


# https://github.com/kaiko-ai/eva, dataset BreaKHis: its validation patients. None of their slides is filed twice.
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
# https://github.com/MICS-Lab/thunder and https://github.com/MedARC-AI/nanopath: eva's task with validation patients.
_THUNDER_VAL_PATIENTS = (
    *(f"SOB_B_F_14-{slide}" for slide in ("23222AB", "29960AB")),
    *(f"SOB_B_TA_14-{slide}" for slide in ("13200", "19854C")),
    *(f"SOB_M_DC_14-{slide}" for slide in ("10926", "11520", "12312", "13412")),
    *(f"SOB_M_MC_14-{slide}" for slide in ("13418DE", "18842")),
)
_THUNDER = dataclasses.replace(_EVA, name="thunder", val_patients=_THUNDER_VAL_PATIENTS)
REGISTRY = {
    protocol.name: protocol
    for protocol in (
        *(
            Protocol(f"{kind}_{suffix}", kind, duplicates)
            for kind in _KINDS
            for duplicates, suffix in _SUFFIXES.items()
        ),
        _EVA,
        _THUNDER,
        *(
            dataclasses.replace(
                published, name=f"{published.name}_accession_clean", accession_clean=True, images=(0, 0)
            )
            for published in (_EVA, _THUNDER)
        ),
    )
}


def split_spec(fields: Mapping[str, Any]) -> SplitSpec:
    """Build the spec of `config.data.split`; a complete protocol name overrides `duplicates`.

    Raises:
      DataError: the protocol is unknown, or a field has an illegal value.
    """
    name = fields["protocol"]
    protocol = REGISTRY.get(name)
    if protocol is None:
        check_name(name)
        return SplitSpec(**fields)
    implied: dict[str, Any] = {"protocol": protocol.kind}
    implied |= {field: getattr(protocol, field) for field in _IMPLIED}
    if protocol.val_patients:
        implied["val_fraction"] = 0.0
    return SplitSpec(**dict(fields) | implied)


def check_name(name: str) -> None:
    """Verify a protocol's name.

    Raises:
      DataError: the name is unknown.
    """
    short = tuple(kind for kind in PROTOCOLS if kind != "listed")
    if name not in short and name not in REGISTRY:
        listed = [name for name, protocol in REGISTRY.items() if protocol.kind == "listed"]
        raise DataError(
            f"data.split.protocol='{name}' is not one of {', '.join((*short, *listed))}, or one of the first "
            f"{len(short)} with the suffix {', '.join(f'_{suffix}' for suffix in _SUFFIXES.values())}"
        )


def classes_of(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes to which the protocol of `config.data` is limited; empty: all."""
    protocol = _named(data)
    return protocol.classes if protocol else ()


def check_task(data: Mapping[str, Any]) -> None:
    """Verify that the protocol of `config.data` fits its task and magnification.

    Raises:
      DataError: the protocol needs another task or magnification.
    """
    protocol = _named(data)
    if protocol is None:
        return
    for field in ("task", "magnification"):
        wanted = getattr(protocol, field)
        if wanted and data[field] != wanted:
            raise DataError(
                f"data.{field}='{data[field]}': the protocol '{protocol.name}' needs data.{field}={wanted}; "
                "set it, or choose another protocol"
            )


def _named(data: Mapping[str, Any]) -> Protocol | None:
    """Return the protocol of `config.data` if its name defines it completely; `data` may have no split."""
    return REGISTRY.get(data["split"]["protocol"]) if "split" in data else None


def define(spec: SplitSpec, classes: Sequence[str]) -> Definition:
    """Return the identity of a resolved spec; its hash covers everything but the seed and the number of the fold."""
    key = [spec.protocol, *(getattr(spec, field) for field in _IMPLIED)]
    known = next((p for p in REGISTRY.values() if [p.kind, *(getattr(p, field) for field in _IMPLIED)] == key), None)
    name, version = (known.name, known.version) if known else (f"{spec.protocol}_{_SUFFIXES[spec.duplicates]}", 1)
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
    if spec.val_patients:
        fixed["val_patients"] = sorted(spec.val_patients)
    if spec.val_folds:
        fixed["val_folds"] = spec.val_folds
    if spec.accession_clean:
        fixed["accession_clean"] = True
    if not spec.kfolds and spec.protocol not in ("given", "folds", "listed"):
        fixed["test_fraction"] = spec.test_fraction
    return Definition(name, version, hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16])


def check_published(name: str, sides: Sequence[str]) -> None:
    """Verify a protocol's published numbers of images, if the whole archive is present.

    Args:
      name: the protocol's name.
      sides: side of each image of its classes: train, val or test.

    Raises:
      DataError: all images are present, but they are not divided as published.
    """
    protocol = REGISTRY.get(name)
    if protocol is None or not any(protocol.images) or len(sides) != sum(protocol.images):
        return
    test = sum(side == "test" for side in sides)
    if test != protocol.images[1]:
        raise DataError(
            f"data.split.protocol='{name}': {len(sides) - test} training and {test} test images, but "
            f"{protocol.images[0]} and {protocol.images[1]} are published; check data.root for changed files"
        )
