"""Slide files for tests: small ones in several formats with H&E-like tissue, damaged ones, and a very large one."""

import math
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile

from tests.helpers.tissue_pictures import GLASS, tissue_texture


def write_pyramid(
    path: pathlib.Path, pixels: np.ndarray, mpp: float | tuple[float, float] | None = None, levels: int = 3, **how: Any
) -> pathlib.Path:
    """Write a generic tiled TIFF file, each level half the size; µm/px is stored in its resolution tags (cm)."""
    x, y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    resolution = {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": 3} if x and y else {}
    how = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None} | resolution | how
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            file.write(_reduced(pixels, 2**level), subfiletype=min(level, 1), **how)
    return path


def write_ome(
    path: pathlib.Path, pixels: np.ndarray, size: tuple[float, float], unit: str = "µm", levels: int = 3
) -> pathlib.Path:
    """Write an OME-TIFF file with its lower levels in SubIFDs and the given pixel size and unit."""
    metadata = {
        "axes": "YXS",
        "PhysicalSizeX": size[0],
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": size[1],
        "PhysicalSizeYUnit": unit,
    }
    how: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(pixels, subifds=levels - 1, metadata=metadata, **how)
        for level in range(1, levels):
            file.write(_reduced(pixels, 2**level), subfiletype=1, metadata=None, **how)
    return path


def write_svs(path: pathlib.Path, pixels: np.ndarray, mpp: float, compression: str = "jpeg") -> pathlib.Path:
    """Write a file that OpenSlide recognizes as an Aperio slide, with one level."""
    header = f"Aperio Image Library v11.2.1 \r\n{pixels.shape[1]}x{pixels.shape[0]}|AppMag = 20|MPP = {mpp}"
    how: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "metadata": None, "description": header}
    tifffile.imwrite(path, pixels, compression=compression, **how)
    return path


def truncate(path: pathlib.Path, fraction: float = 0.5) -> pathlib.Path:
    """Keep only the first part of a file's bytes."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    return path


def write_large(path: pathlib.Path, side: int = 50_000, mpp: float = 0.25) -> pathlib.Path:
    """Write a pyramid (1, 4, 16) of side × side pixels piece by piece: glass with 8192 × 8192 pixels of tissue."""
    texture = tissue_texture(256, 256, mpp)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for downsample in (1, 4, 16):
            stained = _reduced(np.tile(texture, (downsample, downsample, 1)), downsample)
            file.write(
                _square_of_tiles(side, downsample, stained),
                shape=(side // downsample, side // downsample, 3),
                dtype=np.uint8,
                tile=(256, 256),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                metadata=None,
                subfiletype=int(downsample > 1),
                resolution=(1e4 / mpp / downsample, 1e4 / mpp / downsample),
                resolutionunit=3,
            )
    return path


def _square_of_tiles(side: int, downsample: int, stained: np.ndarray) -> Iterator[bytes]:
    """The JPEG tiles of a level; like some scanners, a third of the glass tiles is omitted."""
    glass = imagecodecs.jpeg8_encode(np.full((256, 256, 3), GLASS, np.uint8), level=85)
    tile = imagecodecs.jpeg8_encode(stained, level=85)
    across = -(-(side // downsample) // 256)
    first, count = side // 2 // 4096 * (16 // downsample), 2 * 16 // downsample
    for index in range(across**2):
        inside = all(first <= position < first + count for position in divmod(index, across))
        yield tile if inside else (glass if index % 3 else b"")


def _reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    size = (max(1, pixels.shape[1] // factor), max(1, pixels.shape[0] // factor))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def write_scn(
    path: pathlib.Path, pixels: np.ndarray, mpp: float, offset: tuple[int, int], whole: tuple[int, int]
) -> pathlib.Path:
    """Write a file that OpenSlide recognizes as a Leica slide, of which only a part was scanned.

    Args:
      path: the file.
      pixels: the part.
      mpp: µm per pixel.
      offset: x and y of the part in level 0.
      whole: width and height of level 0.
    """

    def length(name: str, x: int, y: int) -> str:
        return f'{name}X="{round(x * mpp * 1000)}" {name}Y="{round(y * mpp * 1000)}"'  # nm

    height, width = pixels.shape[:2]
    header = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="made" {length("size", *whole)}><image name="a"><device model="made"/>'
        f'<pixels sizeX="{width}" sizeY="{height}"><dimension sizeX="{width}" sizeY="{height}" r="0" ifd="0"/></pixels>'
        f"<view {length('size', width, height)} {length('offset', *offset)}/>"
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>"
        "</image></collection></scn>"
    )
    how: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "metadata": None, "description": header}
    how |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, bigtiff=True, compression="zlib", **how)
    return path


def write_dicom(
    path: pathlib.Path, pixels: np.ndarray, mpp: float, *, series: str = "1.2.3", level: int = 0
) -> pathlib.Path:
    """Write one level of a DICOM slide in tiles without compression.

    Args:
      path: the file.
      pixels: of the level.
      mpp: µm per pixel of the level.
      series: what the levels of a slide have in common.
      level: number of the level; 0 is the scanned one.
    """
    side = 64
    height, width = pixels.shape[:2]
    down, across = math.ceil(height / side), math.ceil(width / side)
    padded = np.pad(pixels, ((0, down * side - height), (0, across * side - width), (0, 0)))
    tiles = padded.reshape(down, side, across, side, 3).transpose(0, 2, 1, 3, 4)
    storage, instance = "1.2.840.10008.5.1.4.1.1.77.1.6", f"{series}.{level + 1}"
    kind = "DERIVED\\PRIMARY\\VOLUME\\RESAMPLED" if level else "ORIGINAL\\PRIMARY\\VOLUME\\NONE"
    spacing = _dicom([(0x28, 0x30, "DS", f"{mpp / 1000:.9f}\\{mpp / 1000:.9f}")])
    uncompressed = "1.2.840.10008.1.2.1"
    meta = [(2, 1, "OB", b"\0\1"), (2, 2, "UI", storage), (2, 3, "UI", instance), (2, 0x10, "UI", uncompressed)]
    body = [(8, 8, "CS", kind), (8, 0x16, "UI", storage), (8, 0x18, "UI", instance), (8, 0x60, "CS", "SM")]
    body += [(0x20, 0xD, "UI", "1.2"), (0x20, 0xE, "UI", series), (0x20, 0x9311, "CS", "TILED_FULL")]
    body += [(0x28, 2, "US", 3), (0x28, 4, "CS", "RGB"), (0x28, 6, "US", 0), (0x28, 8, "IS", str(down * across))]
    body += [(0x28, 0x10, "US", side), (0x28, 0x11, "US", side)]
    body += [(0x28, number, "US", bits) for number, bits in ((0x100, 8), (0x101, 8), (0x102, 7), (0x103, 0))]
    body += [(0x48, 6, "UL", width), (0x48, 7, "UL", height)]
    body += [(0x5200, 0x9229, "SQ", _dicom_item(_dicom([(0x28, 0x9110, "SQ", _dicom_item(spacing))])))]
    body += [(0x7FE0, 0x10, "OW", np.ascontiguousarray(tiles).tobytes())]
    described = _dicom([*meta, (2, 0x12, "UI", "1.2.3.4")])
    path.write_bytes(bytes(128) + b"DICM" + _dicom([(2, 0, "UL", len(described))]) + described + _dicom(body))
    return path


def _dicom(elements: list[tuple[int, int, str, Any]]) -> bytes:
    """Elements of a DICOM file: group, number, type, value."""
    out = b""
    for group, number, kind, value in elements:
        if isinstance(value, str):
            value = value.encode() + (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
        elif isinstance(value, int):
            value = struct.pack("<H" if kind == "US" else "<I", value)
        size = struct.pack("<2xI" if kind in ("OB", "OW", "SQ") else "<H", len(value))
        out += struct.pack("<HH", group, number) + kind.encode() + size + value
    return out


def _dicom_item(content: bytes) -> bytes:
    """A sequence's only item."""
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
