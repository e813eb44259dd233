"""Tiles as GeoJSON for QuPath 0.4 and later: one closed square per tile with its class, colour and probabilities.

Coordinates are level-0 pixels with the origin in the upper left corner of the slide's plane, by default as in QuPath.
The rest follows QuPath's own
files: a class is `{"name": "tumor", "color": [r, g, b]}`, a class of several labels
`{"names": ["tumor", "stroma"], …}` (QuPath shows "tumor: stroma"), and `measurements` maps names to numbers.
"""

import gzip
import io
import json
import os
import pathlib
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import IO, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histojax.core.files import atomic_write
from histojax.slides.labels import PREFIX, blend, carried_labels, label_colours, label_names
from histojax.slides.tile_table import BOX

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "histojax:tiles")


def write_tiles(
    table: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    slide: str,
    thresholds: Mapping[str, float] | None,
    plane: Mapping[str, str | int] | None = None,
) -> None:
    """Write the tiles of a tile table as a FeatureCollection, atomically.

    Args:
      table: a tile table with a column `prob_<label>` per label.
      path: the file; compressed if its name ends with `.gz`.
      slide: the slide's name. A tile's `id` depends only on this name and its box, so that importing a second run
        replaces the tiles of the first.
      thresholds: label to threshold, or None for exclusive classes, as in `labels.carried_labels`.
      plane: where coordinates count from (`Slide.plane`), written as the member `histojax`.
    """
    target = pathlib.Path(path)
    with atomic_write(target) as temporary, ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(open(temporary, "wb"))
        if target.name.endswith(".gz"):
            # Without time and file name in the header, so that equal tiles give equal bytes.
            compressed = gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0)
            file = stack.enter_context(cast(IO[bytes], compressed))
        text = stack.enter_context(io.TextIOWrapper(file, encoding="utf-8", newline="\n"))
        origin = f'"histojax":{json.dumps({"plane": dict(plane)})},' if plane else ""
        text.write(f'{{"type":"FeatureCollection",{origin}"features":[')
        separator = "\n"
        for feature in _features(table, slide, thresholds):
            text.write(separator + feature)
            separator = ",\n"
        text.write("\n]}\n")


def _features(table: pd.DataFrame, slide: str, thresholds: Mapping[str, float] | None) -> Iterator[str]:
    """The tiles as JSON texts, one at a time: a large slide has millions."""
    names = label_names(table)
    measured = [PREFIX + name for name in names] + ["tissue"]
    keys = [json.dumps(name, ensure_ascii=False) for name in measured]
    classes: dict[bytes, str] = {}
    boxes, values = table[list(BOX)].to_numpy(np.int64), table[measured].to_numpy(np.float64)
    for box, numbers, carried in zip(boxes, values, carried_labels(table, thresholds), strict=True):
        x, y, width, height = box.tolist()
        right, bottom = x + width, y + height
        key = carried.tobytes()
        if key not in classes:
            classes[key] = _classification(names, carried)
        measurements = ",".join(f"{name}:{value:.6g}" for name, value in zip(keys, numbers.tolist(), strict=True))
        yield (
            f'{{"type":"Feature","id":"{uuid.uuid5(_NAMESPACE, f"{slide}/{x},{y},{width},{height}")}",'
            '"geometry":{"type":"Polygon","coordinates":'
            f"[[[{x},{y}],[{right},{y}],[{right},{bottom}],[{x},{bottom}],[{x},{y}]]]}},"
            f'"properties":{{"objectType":"tile",{classes[key]}"measurements":{{{measurements}}}}}}}'
        )


def _classification(names: tuple[str, ...], carried: NDArray[np.bool_]) -> str:
    """The property `classification` with a trailing comma; like QuPath, empty for a tile without a label."""
    present = [name for name, is_carried in zip(names, carried, strict=True) if is_carried]
    if not present:
        return ""
    colours = label_colours(names)
    title = {"name": present[0]} if len(present) == 1 else {"names": present}
    value = title | {"color": list(blend([colours[name] for name in present]))}
    return f'"classification":{json.dumps(value, ensure_ascii=False, separators=(",", ":"))},'
