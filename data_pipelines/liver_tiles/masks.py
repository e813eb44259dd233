"""Images with masks: which class a pixel is, and the tiles that are cut from them."""

import io
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.images import BadImageError
from data_pipelines.liver_tiles.spec import TilesSpec

# WSSS4LUAD (Han et al. 2022): tumor, stroma, normal, and white for the background.
_WSSS4LUAD = (0, 64, 128, 64, 128, 0, 243, 152, 0, 255, 255, 255)
_WSSS4LUAD_LABELS = ("tumor", "stroma", "normal")
_SUFFIXES = (".png", ".tif", ".tiff")


def mask_of(image: pathlib.Path) -> pathlib.Path | None:
    """The mask of an image in `img/…`: the file of the same name in `mask/` or `masks/` beside it; None: none."""
    for folder in ("mask", "masks"):
        for suffix in _SUFFIXES:
            path = image.parent.parent / folder / (image.stem + suffix)
            if path.is_file():
                return path
    return None


def own_labels(root: pathlib.Path, masks: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """The labels of masks that bring their own, told by the palette of all of them.

    Raises:
      DataError: they do not: somebody must say which value is which label.
    """
    palettes = {palette[: len(_WSSS4LUAD)] for path in masks if (palette := _palette(path)) is not None}
    if palettes == {_WSSS4LUAD}:
        return _WSSS4LUAD_LABELS
    raise DataError(
        f"{root}: what the values in the masks mean is not known (theirs is not WSSS4LUAD's palette): name the labels "
        "and the value of each with --config.data.tiles.labels=\"('a','b')\" and .mask_values=\"(1,2)\""
    )


def read_mask(path: pathlib.Path, height: int, width: int) -> np.ndarray:
    """The class of each pixel of an image of this size, `uint8 [h, w]`.

    Raises:
      BadImageError: unreadable, colours instead of numbers, another size than the image's.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=("PNG", "TIFF")) as mask:
            mode, values = mask.mode, np.asarray(mask)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImageError(f"its mask {path.name} is unreadable ({error})") from error
    if mode not in ("P", "L", "1"):
        raise BadImageError(
            f"its mask {path.name} has mode {mode} where a number a pixel (palette or grey) is expected"
        )
    if values.shape != (height, width):
        raise BadImageError(
            f"its mask {path.name} is {values.shape[1]}×{values.shape[0]} pixels, the image {width}×{height}"
        )
    return values.astype(np.uint8)


def tiles(mask: np.ndarray, labels: Sequence[str], spec: TilesSpec) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """The tiles of an image: left and upper edge in pixels, and the labels whose class covers enough of it."""
    values = spec.mask_values or tuple(range(len(labels)))
    least = spec.min_share * spec.size**2
    step = spec.stride or spec.size
    for y in range(0, mask.shape[0] - spec.size + 1, step):
        for x in range(0, mask.shape[1] - spec.size + 1, step):
            counts = np.bincount(mask[y : y + spec.size, x : x + spec.size].ravel(), minlength=256)
            yield x, y, tuple(name for name, value in zip(labels, values, strict=True) if counts[value] >= least)


def _palette(path: pathlib.Path) -> tuple[int, ...] | None:
    """Of a mask without a palette it is empty; None: unreadable, which `read_mask` tells of."""
    try:
        with Image.open(path, formats=("PNG", "TIFF")) as mask:
            return tuple(mask.getpalette() or ()) if mask.mode == "P" else ()
    except (OSError, SyntaxError, ValueError):
        return None
