"""The table of `histojax models`: size, feature maps, public weights and reference implementation of each model."""

import contextlib
import hashlib
import importlib.metadata
import logging
import pathlib
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from histojax.core.directories import default_directory
from histojax.core.errors import RunError
from histojax.core.files import atomic_write
from histojax.core.text_table import text_table

if TYPE_CHECKING:
    from histojax.models.cost import Shape

_log = logging.getLogger(__name__)
_PACKAGE = pathlib.Path(__file__).parents[1]

_IMAGE_SIZE, _CLASSES = 224, 1000
_WIDTHS = (20, 24, 24)  # characters of the last columns, whose longer cells continue on the next line


def stored_table() -> str:
    """Return the table, from the folder of prepared data if it was made there of the same models before.

    Making it builds every model, which takes 10 seconds and more; reading it does not even import jax.
    """
    try:
        path = default_directory() / f"models-{_sources_hash()}.txt"
    except RunError:  # no home directory to keep it in
        return table()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    _log.info("measuring the models once …")
    text = table()
    with contextlib.suppress(OSError):  # a folder that cannot be written
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return text


def _sources_hash() -> str:
    """Hash what the table depends on: the sources of the models and of this module, and the libraries that count."""
    digest = hashlib.sha256()
    for path in (pathlib.Path(__file__), *sorted((_PACKAGE / "models").rglob("*.py"))):
        digest.update(path.read_bytes())
    for library in ("jax", "flax"):
        digest.update(importlib.metadata.version(library).encode())
    return digest.hexdigest()[:16]


def table() -> str:
    """Return the table as text, at 224×224 pixels and 1000 classes."""
    from histojax import models
    from histojax.models.cost import measure

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


def feature_maps(name: str) -> "dict[str, Shape]":
    """Return shape (h, w, c) of each feature map of an image of 224×224, by name, in the order of the forward pass."""
    from histojax.models.cost import measure

    return measure(name, _CLASSES, _IMAGE_SIZE, {}).feature_maps


def _abbreviate(names: list[str]) -> str:
    """Join names, shortening a long series such as block1, block2, …, block12."""
    return ", ".join(names) if len(names) <= 8 else f"{names[0]}, {names[1]}, …, {names[-1]}"


def _wrap(numbers: tuple[str, str, str], cells: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the table rows of one model, whose long cells continue in the rows below."""
    columns = [textwrap.wrap(cell, width, break_long_words=False) for cell, width in zip(cells, _WIDTHS, strict=True)]
    for i in range(max(map(len, columns))):
        yield (*(numbers if i == 0 else ("", "", "")), *(column[i] if i < len(column) else "" for column in columns))
