"""Images and slides with planted labels: purple speckle is tumor, pink streaks are stroma."""

import pathlib

import numpy as np
import tifffile
from PIL import Image

MPP = 0.5
_TUMOR, _STROMA = np.array([110, 60, 150]), np.array([225, 130, 180])


def tissue(height: int, width: int, boundary: int, rng: np.random.Generator) -> np.ndarray:
    """`uint8 [h, w, 3]`: tumor to the left of column `boundary`, stroma to the right."""
    speckle = rng.normal(0, 25, (height, width, 1))
    streaks = np.repeat(rng.normal(0, 12, (height, 1, 1)), width, axis=1)
    left = np.arange(width)[None, :, None] < boundary
    pixels = np.where(left, _TUMOR + speckle, _STROMA + streaks)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_masked_images(root: pathlib.Path, n: int = 12) -> pathlib.Path:
    """Write `img/` and `mask/` (0 is tumor, 1 is stroma) with n images of 144 × 96 pixels."""
    rng = np.random.default_rng(0)
    for name in ("img", "mask"):
        (root / name).mkdir(parents=True)
    for i in range(n):
        boundary = int(rng.integers(0, 145))
        Image.fromarray(tissue(96, 144, boundary, rng)).save(root / "img" / f"{i:02}.png")
        mask = np.broadcast_to(np.arange(144) >= boundary, (96, 144)).astype(np.uint8)
        Image.fromarray(mask).save(root / "mask" / f"{i:02}.png")
    return root


def write_slide(path: pathlib.Path, stroma_fraction: float, seed: int = 0, mpp: float | None = MPP) -> pathlib.Path:
    """Write a two-level tiled TIFF, 1200 × 900 pixels: 960 × 720 of tissue on white, with stroma on the right."""
    pixels = np.full((900, 1200, 3), 244, np.uint8)
    pixels[90:810, 120:1080] = tissue(720, 960, round(960 * (1 - stroma_fraction)), np.random.default_rng(seed))
    tags = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(128, 128), photometric="rgb", compression="zlib", **tags)
        file.write(pixels[::2, ::2], tile=(128, 128), photometric="rgb", compression="zlib", subfiletype=1)
    return path
