"""Images that are not one picture of 8 bits per channel, which Pillow reduces to one without a word."""

import io

from PIL import Image

_SUBFILE_TYPE, _BITS_PER_SAMPLE = 254, 258  # TIFF tags
_REDUCED = 1  # bit of the subfile type: a smaller version of another page, such as a level of a pyramid
_SIZ = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 codestream and of its size marker
_SIZ_DEPTH = 42  # bytes from there to the depth of the first component


def describe_fault(image: Image.Image, data: bytes) -> str:
    """Say what an image is instead of one picture of 8 bits per channel, such as "a TIFF of 3 pages".

    16 bits cannot be scaled to 8, because files rarely state which part of their range they use: 12-bit pixels would
    come out nearly black.

    Args:
      image: the opened image; its pixels need not be loaded.
      data: the bytes that it was opened from.

    Returns:
      The fault; empty if there is none.

    Raises:
      ValueError: the headers are damaged.
    """
    try:
        bits = _bits(image, data)
        pages = _tiff_pages(data) if image.format == "TIFF" else 1
    except Exception as error:  # Pillow raises many kinds of errors for damaged headers
        raise ValueError(f"damaged headers: {error}") from error
    if bits > 8:
        return f"a {image.format} of {bits} bits per channel"
    return f"a TIFF of {pages} pages" if pages > 1 else ""


def _bits(image: Image.Image, data: bytes) -> int:
    """The largest number of bits of a channel."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))  # type: ignore[attr-defined]
    if image.format == "JPEG2000" and (start := data.find(_SIZ)) >= 0 and len(data) > start + _SIZ_DEPTH:
        return (data[start + _SIZ_DEPTH] & 0x7F) + 1
    return 8


def _tiff_pages(data: bytes) -> int:
    """The number of pages of a TIFF file, without smaller versions of the first one."""
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
        width, height = image.size
        pages = 1
        for page in range(1, image.n_frames):  # type: ignore[attr-defined]
            image.seek(page)
            reduced = image.tag_v2.get(_SUBFILE_TYPE, 0) & _REDUCED  # type: ignore[attr-defined]
            smaller = image.width < width and image.height < height
            pages += not (reduced or (smaller and abs(image.width / image.height * height / width - 1) < 0.05))
    return pages
