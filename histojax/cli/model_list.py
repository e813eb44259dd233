"""The table of `histojax models`: size, feature maps, public weights and reference implementation of each model."""

import textwrap
from collections.abc import Iterator

from histojax import models
from histojax.core.text_table import text_table
from histojax.models.cost import Shape, measure

_IMAGE_SIZE, _CLASSES = 224, 1000
_WIDTHS = (20, 24, 24)  # characters of the last columns, whose longer cells continue on the next line


def table() -> str:
    """Return the table as text, at 224×224 pixels and 1000 classes."""
    rows: list[tuple[str, ...]] = [
        ("model", "param. M", "GFLOP", "feature maps", "weights by names of", "compared with")
    ]
    for name in models.names():
        spec = models.spec(name)
        size = measure(name, _CLASSES, _IMAGE_SIZE, {})
        titles = dict.fromkeys(naming.title.partition(",")[0] for naming in spec.namings)
        cells = (_abbreviate(list(size.feature_maps)), ", ".join(titles) or "-", spec.compared_with)
        rows += _wrap((name, f"{size.parameters / 1e6:.2f}", f"{size.flops / 1e9:.2f}"), cells)
    return "\n".join(text_table(rows, right=(1, 2)))


def feature_maps(name: str) -> dict[str, Shape]:
    """Return shape (h, w, c) of each feature map of an image of 224×224, by name, in the order of the forward pass."""
    return measure(name, _CLASSES, _IMAGE_SIZE, {}).feature_maps


def _abbreviate(names: list[str]) -> str:
    """Join names, shortening a long series such as block1, block2, …, block12."""
    return ", ".join(names) if len(names) <= 8 else f"{names[0]}, {names[1]}, …, {names[-1]}"


def _wrap(numbers: tuple[str, str, str], cells: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the table rows of one model, whose long cells continue in the rows below."""
    columns = [textwrap.wrap(cell, width, break_long_words=False) for cell, width in zip(cells, _WIDTHS, strict=True)]
    for i in range(max(map(len, columns))):
        yield (*(numbers if i == 0 else ("", "", "")), *(column[i] if i < len(column) else "" for column in columns))
