"""Finding BreakHis's images under a folder, and saying what is wrong or missing before anything is built."""

import concurrent.futures
import dataclasses
import os
import pathlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from data_pipelines.breakhis import filenames
from data_pipelines.errors import DataError, bad_images_message
from data_pipelines.images import BadImageError, CheckedImage, check_png
from data_pipelines.listing import list_files

DOWNLOAD = "http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz"


@dataclasses.dataclass(frozen=True)
class ScannedImage:
    """A readable image: where it lies, what its name says, and its pixels' hash."""

    path: pathlib.Path
    name: filenames.ImageName
    pixel_hash: str


@dataclasses.dataclass(frozen=True)
class Scan:
    """What lies under a root.

    Attributes:
      images: the readable images of the wanted magnifications, sorted by image_id.
      summary: JSON-able facts that travel with the prepared dataset: `bad_images` (file -> reason),
        `notes`, `patients` (who is there, with images by magnification over ALL magnifications found, so that
        a split does not depend on which magnification was prepared), `published` (subtype -> found and
        published counts at the wanted magnifications).
    """

    images: tuple[ScannedImage, ...]
    summary: dict[str, Any]


def require_pngs(root: pathlib.Path) -> list[pathlib.Path]:
    """All PNG files below `root`, sorted.

    Raises:
      DataError: there are none.
    """
    paths = list_files(root, (".png",))
    if not paths:
        raise DataError(
            f"{root}: no PNG images below this folder. Expected BreaKHis_v1.tar.gz, its extracted tree, or any folders "
            f"with files named like SOB_B_A-14-22549AB-40-001.png; the archive is at {DOWNLOAD} (4 GB)"
        )
    return paths


def scan(root: pathlib.Path, magnification: str, on_bad_image: str = "error") -> Scan:
    """Reads and checks every image below `root`: the archive's tree, or folders that kept only the names.

    Args:
      root: a folder.
      magnification: `40X`, `100X`, `200X`, `400X` or `all`.
      on_bad_image: `error` or `skip`.

    Raises:
      DataError: no images, none of that magnification, or bad images while `on_bad_image` is `error`.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; data.root is BreakHis's archive or a folder with its images")
    paths = require_pngs(root)
    wanted = filenames.MAGNIFICATIONS if magnification == "all" else (magnification,)
    bad: dict[str, str] = {}
    named: list[tuple[pathlib.Path, filenames.ImageName]] = []
    for path in paths:
        try:
            named.append((path, filenames.parse(path.name)))
        except filenames.BadNameError as error:
            bad[str(path.relative_to(root))] = str(error)
    selected = [(path, name) for path, name in named if name.magnification in wanted]
    if named and not selected:
        there = Counter(name.magnification for _, name in named)
        listing = ", ".join(f"{m}: {there[m]}" for m in filenames.MAGNIFICATIONS if there[m])
        raise DataError(f"{root}: no image of magnification {magnification} (found {listing})")

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = list(pool.map(lambda item: _check(item[0]), selected))
    notes: Counter[str] = Counter()
    images: dict[str, ScannedImage] = {}
    for (path, name), checked in zip(selected, checks, strict=True):
        relative = str(path.relative_to(root))
        twin = images.get(name.image_id)
        if isinstance(checked, str):
            bad[relative] = checked
        elif twin is None:
            images[name.image_id] = ScannedImage(path, name, checked.pixel_hash)
            if checked.note:
                notes[checked.note] += 1
        elif twin.pixel_hash == checked.pixel_hash:
            notes["the same image under the same name in two folders, taken once"] += 1
        else:
            bad[relative] = f"same name as {twin.path.relative_to(root)}, but other pixels"
    if bad and on_bad_image == "error":
        raise DataError(bad_images_message(root, bad))
    if not images:
        raise DataError(f"{root}: no usable image of magnification {magnification}; {bad_images_message(root, bad)}")

    ordered = tuple(images[key] for key in sorted(images))
    return Scan(
        images=ordered,
        summary={
            "root": str(root),
            "bad_images": dict(sorted(bad.items())),
            "notes": dict(sorted(notes.items())),
            "patients": _patients({name.image_id: name for _, name in named}.values()),
            "published": compare_with_published(Counter(i.name.subtype for i in ordered), wanted),
        },
    )


def compare_with_published(found: Counter[str], magnifications: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Counts by subtype beside those of the paper, at the given magnifications."""
    positions = [filenames.MAGNIFICATIONS.index(m) for m in magnifications]
    return {
        subtype: {"found": found[subtype], "published": sum(counts[p] for p in positions)}
        for subtype, counts in filenames.PUBLISHED_COUNTS.items()
    }


def describe_missing(published: dict[str, dict[str, int]]) -> str:
    """One line: how the counts differ from the published table."""
    found = sum(row["found"] for row in published.values())
    total = sum(row["published"] for row in published.values())
    off = [
        f"{subtype} {row['found']}/{row['published']}"
        for subtype, row in published.items()
        if row["found"] != row["published"]
    ]
    if not off:
        return f"all {total} published images are there"
    return f"{found} of {total} published images; found/published by subtype: {', '.join(off)}"


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
    """The checked image, or the reason why it cannot be used."""
    try:
        return check_png(path.read_bytes())
    except BadImageError as error:
        return str(error)
    except OSError as error:
        return f"unreadable: {error.strerror}"
