"""Scan of tiles: read and check every image, cut those with masks, and report problems before anything is stored."""

import concurrent.futures
import dataclasses
import os
import pathlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from data_pipelines.errors import BadImageError, DataError, bad_images_message
from data_pipelines.images import check_image, decode_rgb, encode_png, pixel_hash, read_file, storable
from data_pipelines.liver_tiles import layouts, masks
from data_pipelines.liver_tiles.layouts import Item, name_of
from data_pipelines.liver_tiles.spec import TilesSpec
from data_pipelines.liver_tiles.tile_names import tile_name
from data_pipelines.records import Record, join_labels
from histojax.core.printable import printable

_NO_LABEL = "tile without a label left out (data.tiles.keep_empty=True keeps them)"
_SMALL = "image smaller than a tile left out (data.tiles.size)"


@dataclasses.dataclass(frozen=True)
class Tile:
    """An image to be stored: a whole file or a part of it.

    Attributes:
      record: its row of the table.
      path: the file.
      shape: height and width in pixels.
      corner: x and y of the part's upper left corner in pixels; None: the whole file.
    """

    record: Record
    path: pathlib.Path
    shape: tuple[int, int]
    corner: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Scan:
    """The tiles of a root.

    Attributes:
      tiles: the usable tiles, sorted by image_id.
      summary: JSON-able facts that are stored with the prepared dataset: `root`, `layout`, `labels`, `bad_images`
        (file -> reason), `notes`, `tile_pixels` (side of the tiles; None unless all are squares of one size).
    """

    tiles: tuple[Tile, ...]
    summary: dict[str, Any]


def scan(root: pathlib.Path, spec: TilesSpec, on_bad_image: str = "error") -> Scan:
    """Read and check every image below `root`.

    Args:
      root: a folder.
      spec: how to read it.
      on_bad_image: `error` or `skip`.

    Raises:
      DataError: no image, or bad images while `on_bad_image` is `error`.
    """
    found = layouts.find(root, spec)
    bad, notes = dict(found.bad), Counter(found.notes)
    ids = image_ids(found.items, root)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        read = list(pool.map(lambda item: _read(item, ids[item.path], found.labels, spec), found.items))
    tiles: list[Tile] = []
    for item, result in zip(found.items, read, strict=True):
        if isinstance(result, str):
            bad[name_of(item.path, root)] = result
        else:
            tiles += result[0]
            notes += result[1]
    if bad and on_bad_image == "error":
        raise DataError(bad_images_message(root, bad))
    if not tiles:
        reasons = "; ".join(f"{count} × {note}" for note, count in notes.items())
        raise DataError(f"{root}: no usable tile; {bad_images_message(root, bad) if bad else reasons}")
    shapes = {tile.shape for tile in tiles}
    height, width = min(shapes)
    return Scan(
        tiles=tuple(sorted(tiles, key=lambda tile: tile.record.image_id)),
        summary={
            "root": printable(root),
            "layout": found.layout,
            "labels": list(found.labels),
            "bad_images": dict(sorted(bad.items())),
            "notes": dict(sorted(notes.items())),
            "tile_pixels": height if len(shapes) == 1 and height == width else None,
        },
    )


def stored_bytes(tile: Tile) -> bytes:
    """Return what is stored of a tile: the file's own bytes if possible (PNG, JPEG), else a PNG of its pixels."""
    data = read_file(tile.path)
    if tile.corner is not None:
        (x, y), (height, width) = tile.corner, tile.shape
        return encode_png(decode_rgb(data)[y : y + height, x : x + width])
    return storable(data)


def image_ids(items: Iterable[Item], root: pathlib.Path) -> dict[pathlib.Path, str]:
    """Return a unique name for each image: its path below the root, without the suffix if that is unique."""
    bare = {item.path: name_of(item.path, root).removesuffix(item.path.suffix) for item in items}
    count = Counter(bare.values())
    return {path: name if count[name] == 1 else name_of(path, root) for path, name in bare.items()}


def _read(item: Item, image_id: str, labels: tuple[str, ...], spec: TilesSpec) -> tuple[list[Tile], Counter[str]] | str:
    """Return the tiles of an image and its notes, or the reason why it cannot be used."""
    try:
        data = read_file(item.path)
        checked = check_image(data)
        whole = Record(
            image_id=image_id,
            label=join_labels(item.labels),
            subtype="",
            patient_id=item.patient_id,
            case_id="",
            magnification="",
            pixel_hash=checked.pixel_hash,
            slide_id=item.slide_id,
            source_id=item.source_id,
            given_split=item.given_split,
        )
        notes = Counter({checked.note: 1} if checked.note else {})
        if item.mask is None:
            return [Tile(whole, item.path, (checked.height, checked.width))], notes
        mask = masks.read_mask(item.mask, checked.height, checked.width)
    except BadImageError as error:
        return str(error)
    if min(mask.shape) < spec.size:
        return [], notes + Counter({_SMALL: 1})
    pixels = decode_rgb(data)
    whole = dataclasses.replace(whole, source_id=f"{item.path.stem}-{checked.pixel_hash[:8]}")
    cut = []
    for x, y, there in masks.tiles(mask, labels, spec):
        if not there and not spec.keep_empty:
            notes[_NO_LABEL] += 1
            continue
        record = dataclasses.replace(
            whole,
            image_id=tile_name(image_id, x, y),
            label=join_labels(there),
            pixel_hash=pixel_hash(pixels[y : y + spec.size, x : x + spec.size]),
        )
        cut.append(Tile(record, item.path, (spec.size, spec.size), (x, y)))
    return cut, notes
