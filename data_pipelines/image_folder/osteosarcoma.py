"""The osteosarcoma tiles of UT Southwestern and UT Dallas: a source, because table and files spell names differently.

`ML_Features_1144.csv` has `Case 48 - P5 C25 …` where the file is `Case-48-P5-C25-….jpg`, in one of many folders.
"""

import functools
import pathlib
import re
from collections.abc import Iterator

from data_pipelines.errors import DataError
from data_pipelines.image_folder.sources import ImageSource, OwnImage, register
from data_pipelines.images import read_file
from data_pipelines.tables import read_table
from histojax.core.printable import printable
from histojax.core.walk import find_files

TABLE = "ML_Features_1144.csv"
_NAME, _LABEL = "image.name", "classification"
# The published counts of three classes take tiles of both kinds of tumor as viable.
_CLASSES = {name: name for name in ("Non-Tumor", "Viable", "Non-Viable-Tumor")} | {"viable: non-viable": "Viable"}


def images(root: pathlib.Path) -> Iterator[OwnImage]:
    """Yield the tiles of the table whose files are below the root; the patient is the beginning of the name.

    Raises:
      DataError: no table, or it has other columns or classes.
    """
    header, rows = read_table(root / TABLE)
    if not {_NAME, _LABEL} <= set(header):
        raise DataError(
            f"{printable(root / TABLE)}: no columns {_NAME} and {_LABEL}; it has {printable(', '.join(header))}"
        )
    files = {_key(path.stem): path for path in find_files(root, (".jpg", ".tif", ".tiff", ".png")).with_links()}
    for place, row in rows:
        name, label = _key(row[_NAME]), row[_LABEL]
        if label not in _CLASSES:
            raise DataError(
                f"{place}, column {_LABEL}: '{printable(label)}' is none of the classes {', '.join(_CLASSES)}"
            )
        if name in files:
            patient = re.match(r"(Case-\d+|P\d+)", name)
            read = functools.partial(read_file, files[name])
            yield OwnImage(name, _CLASSES[label], read, patient_id=patient[1] if patient else "")


def _key(name: str) -> str:
    """Return a name with single hyphens where the table has spaces, hyphens or both."""
    return re.sub(r"[\s-]+", "-", name.strip())


SOURCE = register(ImageSource("osteosarcoma", images))
