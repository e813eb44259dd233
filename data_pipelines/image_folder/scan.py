"""Scan of images with one class each: read and check every image before anything is stored."""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from data_pipelines.errors import BadImageError, DataError, bad_images_message
from data_pipelines.image_folder import layouts
from data_pipelines.image_folder.layouts import Item
from data_pipelines.image_folder.spec import FolderSpec
from data_pipelines.images import CheckedImage, check_image, read_file
from data_pipelines.records import Record
from histojax.core.printable import printable


@dataclasses.dataclass(frozen=True)
class ScannedImage:
    """A readable image: its row of the table, what reads its bytes, and its width and height in pixels."""

    record: Record
    read: Callable[[], bytes]
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Scan:
    """The images of a root.

    Attributes:
      images: the readable images, sorted by image_id.
      summary: JSON-able facts that are stored with the prepared dataset: `root`, `layout`, `classes` (name -> images),
        `bad_images` (file -> reason), `notes`.
    """

    images: tuple[ScannedImage, ...]
    summary: dict[str, Any]


def scan(root: pathlib.Path, spec: FolderSpec, on_bad_image: str = "error") -> Scan:
    """Read and check every image below `root`.

    Args:
      root: a folder.
      spec: how to read it.
      on_bad_image: `error` or `skip`.

    Raises:
      DataError: no usable image, or bad images while `on_bad_image` is `error`.
    """
    found = layouts.find(root, spec)
    bad, notes = dict(found.bad), Counter(found.notes)
    ids = layouts.image_ids(found.items, root)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = list(pool.map(lambda item: _check(_reader(item)), found.items))
    images = []
    for item, checked in zip(found.items, checks, strict=True):
        if isinstance(checked, str):
            bad[layouts.name_of(item.path, root)] = checked
            continue
        if checked.note:
            notes[checked.note] += 1
        size = (checked.width, checked.height)
        images.append(ScannedImage(_record(item, ids[item.path], checked), _reader(item), size))
    if bad and on_bad_image == "error":
        raise DataError(bad_images_message(root, bad))
    if not images:
        raise DataError(f"{root}: no usable image; {bad_images_message(root, bad)}")
    classes = Counter(image.record.label for image in images)
    if alone := sorted(name for name, count in classes.items() if count == 1):
        notes[f"class with a single image ({', '.join(map(printable, alone))}): it cannot be trained and tested"] += 1
    scales = known_scales(image.record for image in images)
    if scales_differ(scales):
        what = f"image of a set with {scales[0]:g} to {scales[-1]:g} µm per pixel: scales differ, and none is resampled"
        notes[what] = len(scales)
    return Scan(
        images=tuple(sorted(images, key=lambda image: image.record.image_id)),
        summary={
            "root": printable(root),
            "layout": found.layout,
            "classes": dict(sorted(classes.items())),
            "bad_images": dict(sorted(bad.items())),
            "notes": dict(sorted(notes.items())),
        },
    )


def known_scales(records: Iterable[Record]) -> list[float]:
    """Return the known µm per pixel of images, sorted."""
    return sorted(float(record.mpp) for record in records if record.mpp)


def scales_differ(scales: Sequence[float]) -> bool:
    """Return whether sorted µm per pixel differ by more than 5 %, as those of one magnification may."""
    return bool(scales) and scales[-1] > 1.05 * scales[0]


def _reader(item: Item) -> Callable[[], bytes]:
    return item.read or functools.partial(read_file, item.path)


def _check(read: Callable[[], bytes]) -> CheckedImage | str:
    """Return the checked image, or the reason why it cannot be used."""
    try:
        return check_image(read())
    except BadImageError as error:
        return str(error)


def _record(item: Item, image_id: str, checked: CheckedImage) -> Record:
    return Record(
        image_id=image_id,
        label=item.label,
        subtype="",
        patient_id=item.patient_id,
        case_id=item.case_id,
        magnification=item.magnification,
        pixel_hash=checked.pixel_hash,
        slide_id=item.slide_id,
        given_split=item.given_split,
        site=item.site,
        mpp=item.mpp,
        further=item.further,
    )
