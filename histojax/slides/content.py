"""The identity of a slide: a hash of its bytes, independent of the file's name and folder."""

import hashlib
import pathlib

from histojax.slides.readers import dicom

_WHOLE_BYTES = 16 << 20  # up to this size the whole file is hashed
_BLOCKS, _BLOCK_BYTES = 16, 1 << 20  # evenly spaced in a larger file, its first and last bytes among them


def content_hash(path: pathlib.Path) -> str | None:
    """Hash a slide's size and bytes, of a large file only 16 MiB; of an MRXS slide also the index and the file sizes.

    Of a DICOM slide, all files count, so each of them has the same hash.

    Returns:
      16 hex digits; None for a file that is missing, empty or unreadable.
    """
    digest = hashlib.sha256()
    try:
        if not path.stat().st_size:
            return None
        for file in dicom.files(path):
            _update(digest, file)
        if path.suffix.lower() == ".mrxs":  # the file itself is only a thumbnail
            for file in sorted(path.with_suffix("").iterdir()):
                digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            _update(digest, path.with_suffix("") / "Slidedat.ini")
    except OSError:  # opening the slide later reports the reason
        return None
    return digest.hexdigest()[:16]


def _update(digest: "hashlib._Hash", path: pathlib.Path) -> None:
    size = path.stat().st_size
    digest.update(f"{size}\n".encode())
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
            return
        for block in range(_BLOCKS):
            file.seek((size - _BLOCK_BYTES) * block // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
