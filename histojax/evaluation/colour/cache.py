"""Colour and texture of many images, kept by the hash of their pixels: an image is measured once."""

import concurrent.futures
import logging
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from histojax.core.directories import default_directory
from histojax.core.files import atomic_write
from histojax.core.locks import exclusive_lock
from histojax.core.machine import cores
from histojax.evaluation.colour import features
from histojax.evaluation.metrics import Array

_log = logging.getLogger(__name__)


def of_images(hashes: Sequence[str], read: Callable[[int], Array], folder: pathlib.Path | None = None) -> Array:
    """Return the features of images; measure those that no earlier call has measured.

    Args:
      hashes: of the pixels of each image, (n,).
      read: position -> pixels u8 [h, w, 3]; called from several threads, only for images that are measured.
      folder: of the file of known features; None: below the user's folder of prepared data.

    Returns:
      f32 [n, 96].
    """
    folder = folder or default_directory() / "colour"
    path = folder / f"features-v{features.VERSION}.npz"
    known = _read(path)
    missing = list({key: i for i, key in enumerate(hashes) if key not in known}.values())
    if missing:
        _log.info("measuring colour and texture of %d images", len(missing))
        with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
            measured = list(pool.map(lambda i: features.colour_and_texture(read(i)), missing))
        known |= dict(zip((hashes[i] for i in missing), measured, strict=True))
        with exclusive_lock(folder):
            _write(path, _read(path) | known)
    return np.stack([known[key] for key in hashes])


def _read(path: pathlib.Path) -> dict[str, Array]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(zip(stored["hashes"].tolist(), stored["features"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}  # none yet, or damaged: the images are measured again


def _write(path: pathlib.Path, known: Mapping[str, Array]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, hashes=np.array(list(known), dtype=str), features=np.stack(list(known.values())))
