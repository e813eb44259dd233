"""Scan of BreakHis: find its images below a folder and report what is wrong or missing before anything is stored."""

import concurrent.futures
import dataclasses
import os
import pathlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from data_pipelines.breakhis import filenames
from data_pipelines.errors import BadImageError, DataError, bad_images_message
from data_pipelines.images import CheckedImage, check_png, read_file
from histojax.core.printable import printable
from histojax.core.walk import Files, describe, find_files

_SUFFIXES = (".png",)
DOWNLOAD = "http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz"


@dataclasses.dataclass(frozen=True)
class ScannedImage:
    """A readable image: its path, its parsed name, and the hash of its pixels."""

    path: pathlib.Path
    name: filenames.ImageName
    pixel_hash: str


@dataclasses.dataclass(frozen=True)
class Scan:
    """The images below a root.

    Attributes:
      images: the readable images of the wanted magnifications, sorted by image_id.
      summary: JSON-able facts that are stored with the prepared dataset: `bad_images` (file -> reason), `notes`,
        `patients` (with images by magnification over ALL magnifications found, so that a split does not depend on which
        magnification was prepared), `published` (subtype -> found and published counts at the wanted magnifications).
    """

    images: tuple[ScannedImage, ...]
    summary: dict[str, Any]


def require_pngs(root: pathlib.Path) -> Files:
    """Find all PNG files below `root`.

    Raises:
      DataError: there are none.
    """
    found = find_files(root, _SUFFIXES)
    if not found.paths:
        raise DataError(
            f"{printable(root)}: no PNG images below this folder; its files are {describe(found.passed_over)}. "
            "Expected BreaKHis_v1.tar.gz, its extracted tree, or any folders with files named like "
            f"SOB_B_A-14-22549AB-40-001.png; the archive is at {DOWNLOAD} (4 GB)"
        )
    return found


def scan(root: pathlib.Path, magnification: str, on_bad_image: str = "error") -> Scan:
    """Read and check every image below `root`: the archive's tree, or any folders with the published names.

    Args:
      root: a folder.
      magnification: `40X`, `100X`, `200X`, `400X` or `all`.
      on_bad_image: `error` or `skip`.

    Raises:
      DataError: no image, none of that magnification, or bad images while `on_bad_image` is `error`.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set data.root to BreakHis's archive or a folder with its images")
    wanted = filenames.MAGNIFICATIONS if magnification == "all" else (magnification,)
    found = require_pngs(root)
    named, bad = _parse_names(found.with_links(), root)
    bad |= {_below(path, root): why for path, why in found.broken.items() if path.lower().endswith(_SUFFIXES)}
    selected = [(path, name) for path, name in named if name.magnification in wanted]
    if named and not selected:
        counts = Counter(name.magnification for _, name in named)
        listing = ", ".join(f"{m}: {counts[m]}" for m in filenames.MAGNIFICATIONS if counts[m])
        raise DataError(f"{root}: no image of magnification {magnification} (found {listing})")

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = list(pool.map(lambda item: _check(item[0]), selected))
    notes: Counter[str] = Counter()
    images: dict[str, ScannedImage] = {}
    for (path, name), checked in zip(selected, checks, strict=True):
        relative = _below(path, root)
        twin = images.get(name.image_id)
        if isinstance(checked, str):
            bad[relative] = checked
        elif twin is None:
            images[name.image_id] = ScannedImage(path, name, checked.pixel_hash)
            if checked.note:
                notes[checked.note] += 1
        elif twin.pixel_hash == checked.pixel_hash:
            notes["the same image under the same name in two folders, used once"] += 1
        else:
            bad[relative] = f"same name as {_below(twin.path, root)}, but different pixels"
    if bad and on_bad_image == "error":
        raise DataError(bad_images_message(root, bad))
    if not images:
        raise DataError(f"{root}: no usable image of magnification {magnification}; {bad_images_message(root, bad)}")

    ordered = tuple(images[key] for key in sorted(images))
    return Scan(
        images=ordered,
        summary={
            "root": printable(root),
            "bad_images": dict(sorted(bad.items())),
            "notes": dict(sorted(notes.items())),
            "patients": _patients({name.image_id: name for _, name in named}.values()),
            "published": compare_with_published(Counter(i.name.subtype for i in ordered), wanted),
        },
    )


def compare_with_published(found: Counter[str], magnifications: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Return found and published counts by subtype at the given magnifications."""
    positions = [filenames.MAGNIFICATIONS.index(m) for m in magnifications]
    return {
        subtype: {"found": found[subtype], "published": sum(counts[p] for p in positions)}
        for subtype, counts in filenames.PUBLISHED_COUNTS.items()
    }


def describe_missing(published: dict[str, dict[str, int]]) -> str:
    """Describe in one line how the counts differ from the published table."""
    found = sum(row["found"] for row in published.values())
    total = sum(row["published"] for row in published.values())
    differences = [
        f"{subtype} {row['found']}/{row['published']}"
        for subtype, row in published.items()
        if row["found"] != row["published"]
    ]
    if not differences:
        return f"all {total} published images are present"
    return f"{found} of {total} published images; found/published by subtype: {', '.join(differences)}"


def _below(path: str | pathlib.Path, root: pathlib.Path) -> str:
    return printable(os.path.relpath(path, root))


def _parse_names(
    paths: Iterable[pathlib.Path], root: pathlib.Path
) -> tuple[list[tuple[pathlib.Path, filenames.ImageName]], dict[str, str]]:
    """Return the files with a valid name, and the others: path below the root -> reason."""
    named, bad = [], {}
    for path in paths:
        try:
            named.append((path, filenames.parse(path.name)))
        except filenames.BadNameError as error:
            bad[_below(path, root)] = printable(str(error))
    return named, bad


def _patients(names: Iterable[filenames.ImageName]) -> list[dict[str, Any]]:
    patients: dict[str, dict[str, Any]] = {}
    for name in names:
        row = {
            "patient_id": name.patient_id,
            "case_id": name.case_id,
            "label": name.label,
            "subtype": name.subtype,
        }
        images = patients.setdefault(name.patient_id, row | {"images": {}})["images"]
        images[name.magnification] = images.get(name.magnification, 0) + 1
    return [patients[key] for key in sorted(patients)]


def _check(path: pathlib.Path) -> CheckedImage | str:
    """Return the checked image, or the reason why it cannot be used."""
    try:
        return check_png(read_file(path))
    except BadImageError as error:
        return str(error)
