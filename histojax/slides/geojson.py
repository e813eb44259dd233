"""Tiles as GeoJSON that QuPath (0.4 and later) opens: a closed square a tile, its class, colour and probabilities.

Coordinates are level-0 pixels with the origin in the upper left corner, as QuPath has them. As QuPath writes them
itself, a class is `{"name": "tumor", "color": [r, g, b]}`, one of several labels `{"names": ["tumor", "stroma"], …}`
(shown there as "tumor: stroma"), and `measurements` is a map from name to number.
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
from histojax.slides.labels import PREFIX, blend, carried_labels, label_colors, label_names
from histojax.slides.tile_table import BOX

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "histojax:tiles")


def write_tiles(
    table: pd.DataFrame, path: str | os.PathLike[str], *, slide: str, thresholds: Mapping[str, float] | None
) -> None:
    """Writes the tiles of a tile table with probabilities as a FeatureCollection; whole or not at all.

    Args:
      table: a tile table with a column `prob_<label>` for each label.
      path: of the file; compressed where its name ends with `.gz`.
      slide: its name. A tile's `id` depends on this and its box alone, so that a second run replaces the first's.
      thresholds: label -> least probability; None: a tile has the most probable label, as `labels.carried_labels` says.
    """
    target = pathlib.Path(path)
    with atomic_write(target) as temporary, ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(open(temporary, "wb"))
        if target.name.endswith(".gz"):
            # Neither the time nor the temporary name: the same tiles give the same bytes.
            packed = gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0)
            file = stack.enter_context(cast(IO[bytes], packed))
        text = stack.enter_context(io.TextIOWrapper(file, encoding="utf-8", newline="\n"))
        text.write('{"type":"FeatureCollection","features":[')
        separator = "\n"
        for feature in _features(table, slide, thresholds):
            text.write(separator + feature)
            separator = ",\n"
        text.write("\n]}\n")


def _features(table: pd.DataFrame, slide: str, thresholds: Mapping[str, float] | None) -> Iterator[str]:
    names = label_names(table)
    measured = [PREFIX + name for name in names] + ["tissue"]
    keys = [json.dumps(name, ensure_ascii=False) for name in measured]
    classes: dict[bytes, str] = {}
    boxes, values = table[list(BOX)].to_numpy(np.int64), table[measured].to_numpy(np.float64)
    for box, numbers, there in zip(boxes, values, carried_labels(table, thresholds), strict=True):
        x, y, width, height = box.tolist()
        right, bottom = x + width, y + height
        key = there.tobytes()
        if key not in classes:
            classes[key] = _classification(names, there)
        measurements = ",".join(f"{name}:{value:.6g}" for name, value in zip(keys, numbers.tolist(), strict=True))
        yield (
            f'{{"type":"Feature","id":"{uuid.uuid5(_NAMESPACE, f"{slide}/{x},{y},{width},{height}")}",'
            '"geometry":{"type":"Polygon","coordinates":'
            f"[[[{x},{y}],[{right},{y}],[{right},{bottom}],[{x},{bottom}],[{x},{y}]]]}},"
            f'"properties":{{"objectType":"tile",{classes[key]}"measurements":{{{measurements}}}}}}}'
        )


def _classification(names: tuple[str, ...], there: NDArray[np.bool_]) -> str:
    """The property `classification` with a comma behind; nothing where a tile has no label, as QuPath has it."""
    present = [name for name, is_there in zip(names, there, strict=True) if is_there]
    if not present:
        return ""
    colours = label_colors(names)
    called = {"name": present[0]} if len(present) == 1 else {"names": present}
    value = called | {"color": list(blend([colours[name] for name in present]))}
    return f'"classification":{json.dumps(value, ensure_ascii=False, separators=(",", ":"))},'
