"""Images with masks: the class of each pixel, and the tiles that are cut."""

import io
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from data_pipelines.depth import describe_fault
from data_pipelines.errors import BadImageError, DataError
from data_pipelines.images import read_file
from data_pipelines.liver_tiles.spec import TilesSpec
from histojax.core.printable import printable

# WSSS4LUAD (Han et al. 2022): tumor, stroma, normal, and white for the background.
_WSSS4LUAD = (0, 64, 128, 64, 128, 0, 243, 152, 0, 255, 255, 255)
_WSSS4LUAD_LABELS = ("tumor", "stroma", "normal")
_SUFFIXES = (".png", ".tif", ".tiff")


def mask_of(image: pathlib.Path) -> pathlib.Path | None:
    """Return the mask of an image in `img/`: the file of the same name in `mask/` or `masks/` beside it, if any."""
    for folder in ("mask", "masks"):
        for suffix in _SUFFIXES:
            path = image.parent.parent / folder / (image.stem + suffix)
            if path.is_file():
                return path
    return None


def own_labels(root: pathlib.Path, masks: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """Return the labels that the masks' common palette implies.

    Raises:
      DataError: the palette is not known, so the user must name the labels and their values.
    """
    palettes = {palette[: len(_WSSS4LUAD)] for path in masks if (palette := _palette(path)) is not None}
    if palettes == {_WSSS4LUAD}:
        return _WSSS4LUAD_LABELS
    raise DataError(
        f"{root}: the meaning of the values in the masks is unknown (their palette is not WSSS4LUAD's): set the labels "
        "and their values with --config.data.tiles.labels=\"('a','b')\" and .mask_values=\"(1,2)\""
    )


def read_mask(path: pathlib.Path, height: int, width: int) -> np.ndarray:
    """Read the class of each pixel, `uint8 [h, w]`.

    Args:
      path: the mask.
      height: height of its image in pixels.
      width: width of its image in pixels.

    Raises:
      BadImageError: the mask is unreadable, holds colours instead of numbers, or has another size than the image.
    """
    try:
        data = read_file(path)
    except BadImageError as error:
        raise BadImageError(f"its mask {printable(path.name)} is {error}") from error
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "TIFF")) as mask:
            mode, values, fault = mask.mode, np.asarray(mask), describe_fault(mask, data)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImageError(f"its mask {printable(path.name)} is unreadable ({error})") from error
    if fault:
        raise BadImageError(f"its mask {printable(path.name)} is {fault}, but one of 8 bits is expected: convert it")
    if mode not in ("P", "L", "1"):
        raise BadImageError(
            f"its mask {printable(path.name)} has mode {mode} where one number per pixel (palette or grey) is expected"
        )
    if values.shape != (height, width):
        raise BadImageError(
            f"its mask {printable(path.name)} is {values.shape[1]}×{values.shape[0]} pixels, but the image is "
            f"{width}×{height}"
        )
    return values.astype(np.uint8)


def tiles(mask: np.ndarray, labels: Sequence[str], spec: TilesSpec) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Yield the tiles of an image: left and upper edge in pixels, and the labels that cover enough of the tile."""
    values = spec.mask_values or tuple(range(len(labels)))
    min_pixels = spec.min_share * spec.size**2
    step = spec.stride or spec.size
    for y in range(0, mask.shape[0] - spec.size + 1, step):
        for x in range(0, mask.shape[1] - spec.size + 1, step):
            counts = np.bincount(mask[y : y + spec.size, x : x + spec.size].ravel(), minlength=256)
            yield x, y, tuple(name for name, value in zip(labels, values, strict=True) if counts[value] >= min_pixels)


def _palette(path: pathlib.Path) -> tuple[int, ...] | None:
    """Return a mask's palette, empty if it has none; None if it is unreadable, which `read_mask` reports."""
    try:
        with Image.open(path, formats=("PNG", "TIFF")) as mask:
            return tuple(mask.getpalette() or ()) if mask.mode == "P" else ()
    except (OSError, SyntaxError, ValueError):
        return None
