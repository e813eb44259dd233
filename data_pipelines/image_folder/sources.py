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

from data_pipelines.errors import DataError
from histojax.core.plugins import Registry


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


SOURCES = Registry(ImageSource, "source", "histojax.datasets")
register = SOURCES.register


def find_source(name: str) -> ImageSource:
    """Return a registered source, or one of an installed package.

    Raises:
      DataError: there is none of this name.
    """
    try:
        return SOURCES.find(name)
    except ValueError as error:
        raise DataError(f"data.images.source: {error}") from None
