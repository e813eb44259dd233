"""Datasets of one's own: images that come from neither files in folders nor a table.

A module registers a source, and `data.images.source` names it:

    from data_pipelines.image_folder import ImageSource, OwnImage, register

    def images(root):
        with h5py.File(root / "cores.h5") as file:
            labels = [...]
        for i, label in enumerate(labels):
            yield OwnImage(f"core_{i}", label, lambda i=i: read_png(root, i), patient_id=...)

    register(ImageSource("cores", images))
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata

from data_pipelines.errors import DataError
from histojax.core.suggestions import did_you_mean

ENTRY_POINTS = "histojax.datasets"


@dataclasses.dataclass(frozen=True)
class OwnImage:
    """One image of a source.

    Attributes:
      image_id: unique name.
      label: its class.
      read: returns the bytes of a PNG, JPEG, TIFF, BMP, JPEG 2000 or WebP file; called when the image is checked, and
        again when it is stored.
      patient_id: empty: unknown; so are the fields below.
      case_id: what certainly shares tissue.
      slide_id: the slide.
      site: the hospital or scanner.
      magnification: such as `40X`.
      given_split: train, val or test.
    """

    image_id: str
    label: str
    read: Callable[[], bytes]
    patient_id: str = ""
    case_id: str = ""
    slide_id: str = ""
    site: str = ""
    magnification: str = ""
    given_split: str = ""


def all_files(root: pathlib.Path) -> list[pathlib.Path]:
    """Return the file that a root is, or all files below it."""
    return [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """A dataset of one's own.

    Attributes:
      name: the value of `data.images.source`.
      images: yields the images below `data.root`.
      files: the files whose names, sizes or times change when the images do: the dataset is then prepared again.
    """

    name: str
    images: Callable[[pathlib.Path], Iterable[OwnImage]]
    files: Callable[[pathlib.Path], Sequence[pathlib.Path]] = all_files


_SOURCES: dict[str, ImageSource] = {}


def register(source: ImageSource) -> ImageSource:
    """Make a source available under its name. Registering the same one again has no effect.

    Raises:
      ValueError: another source has this name.
    """
    if _SOURCES.setdefault(source.name, source) is not source:
        raise ValueError(f"a source named {source.name!r} is already registered; choose another name")
    return source


def find_source(name: str) -> ImageSource:
    """Return a registered source, or one of an installed package (entry points of `histojax.datasets`).

    Raises:
      DataError: there is none of this name.
    """
    if name not in _SOURCES:
        for point in metadata.entry_points(group=ENTRY_POINTS):
            if point.name == name:
                register(point.load())
    if name not in _SOURCES:
        known = ", ".join(_SOURCES) or "none is registered"
        raise DataError(
            f"data.images.source='{name}': no such source{did_you_mean(name, _SOURCES)} ({known}); "
            "data.images.module names the Python module that registers it"
        )
    return _SOURCES[name]
