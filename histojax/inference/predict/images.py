"""Which images a command line means: files, folders, globs, lists and zip archives, each under a name of its own."""

import csv
import dataclasses
import functools
import glob
import hashlib
import logging
import os
import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

from histojax.core.errors import RunError

_log = logging.getLogger(__name__)
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".jp2", ".j2k", ".jpx")
_RESERVED = ("prob_", "predicted")  # columns of the table that is made begin so


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image lies.

    Attributes:
      image_id: its name in the table: the path as it was given, or what a list says; always encodable.
      path: of the file, or of the archive that it is in, as the file system names it.
      member: its name in the archive; empty: the file itself.
      facts: what a list says of it, by column.
    """

    image_id: str
    path: str
    member: str = ""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def find(paths: Sequence[str]) -> list[ImageRef]:
    """The images that are meant, in order; what is meant twice is taken once.

    Args:
      paths: images; folders, searched with all below them, links followed, hidden files left out; globs (`**` is any
        depth); lists (.csv) with a column `path`, relative to the list, and any further columns; zip archives. A list
        may name files that are not there: they are found unreadable later, as damaged ones are.

    Raises:
      RunError: no image at all, a path that is not there, a list or an archive that is none, two images of one name.
    """
    found: dict[str, ImageRef] = {}
    repeated = 0
    for ref in (ref for text in paths for ref in _meant(text)):
        other = found.setdefault(ref.image_id, ref)
        if other is not ref:
            repeated += 1
            if other != ref:
                raise RunError(
                    f"{ref.image_id}: two images of this name, or one of which two lists say different things; "
                    "give every image once (a column image_id in a list renames)"
                )
    if not found:
        raise RunError(f"{', '.join(map(_text, paths))}: no image there ({', '.join(SUFFIXES)})")
    if repeated:
        _log.info("%d images were given more than once and are taken once", repeated)
    return list(found.values())


def fingerprint(refs: Iterable[ImageRef]) -> str:
    """Sixteen digits that change when an image is another one: of names, sizes and modification times."""
    stamp = functools.lru_cache(maxsize=1)(_stamp)  # an archive's members come one after another
    digest = hashlib.sha256()
    for ref in refs:
        digest.update(f"{ref.image_id}\0{stamp(ref.path)}\0".encode())
    return digest.hexdigest()[:16]


def open_archive(path: str) -> zipfile.ZipFile:
    """A zip archive for reading.

    Raises:
      RunError: it is none, or damaged.
    """
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        raise RunError(f"{_text(path)}: not readable as a zip archive ({error})") from error


def _stamp(path: str) -> str:
    try:
        stat = os.stat(path)
    except OSError as error:
        return str(error.strerror)
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _text(path: str) -> str:
    """A path that a table can hold: bytes that are no UTF-8 as `\\xff`."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _meant(text: str) -> Iterator[ImageRef]:
    path = os.path.expanduser(text)
    if not os.path.lexists(path) and any(sign in path for sign in "*?["):
        for match in sorted(glob.glob(path, recursive=True)):
            if os.path.isdir(match) or match.lower().endswith((*SUFFIXES, ".zip", ".csv")):
                yield from _there(match)
    else:
        yield from _there(path)


def _there(path: str) -> Iterator[ImageRef]:
    if not os.path.lexists(path):
        raise RunError(f"{_text(path)}: no such file or folder")
    if os.path.isdir(path):
        for inside in _below(path):
            yield ImageRef(_text(inside), inside)
    elif path.lower().endswith(".csv"):
        yield from _listed(path)
    elif path.lower().endswith(".zip"):
        yield from _members(path)
    else:
        yield ImageRef(_text(path), path)


def _below(root: str) -> Iterator[str]:
    """Images below a folder, sorted folder by folder; a folder that several links lead to is entered once."""
    seen = {_identity(root)}

    def tell(error: OSError) -> None:
        _log.warning("%s: passed over (%s)", _text(str(error.filename)), error.strerror)

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=tell):
        yield from (
            os.path.join(folder, name)
            for name in sorted(files)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        )
        entered = []
        for name in sorted(name for name in subfolders if not name.startswith(".")):
            identity = _identity(os.path.join(folder, name))
            if identity not in seen:
                seen.add(identity)
                entered.append(name)
        subfolders[:] = entered


def _identity(folder: str) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _listed(path: str) -> Iterator[ImageRef]:
    name = _text(path)
    try:
        # Paths need not be UTF-8: their bytes pass through.
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            reserved = [column for column in columns if column.startswith(_RESERVED)]
            if "path" not in columns:
                raise RunError(f"{name}: no column `path`; a list of images has path[,patient_id][,label][,…]")
            if reserved or len(set(columns)) < len(columns) or "" in columns:
                raise RunError(
                    f"{name}: columns {', '.join(map(_text, columns))}: each needs a name of its own, which does not "
                    f"begin with {' or '.join(_RESERVED)}"
                )
            for row in reader:
                yield _of_row(path, row, f"{name}, line {reader.line_num}")
    except (OSError, csv.Error) as error:
        raise RunError(f"{name}: not readable as a list of images ({error})") from error


def _of_row(path: str, row: dict[str | None, str | None], place: str) -> ImageRef:
    if None in row:  # where csv puts what is too much
        raise RunError(f"{place}: more values than columns; a comma in a path needs quotes around it")
    facts = {_text(key or ""): _text(value or "") for key, value in row.items() if key != "path"}
    image = row["path"]
    if not image or "\0" in image:
        raise RunError(f"{place}: no path of an image is given")
    image = os.path.join(os.path.dirname(path), os.path.expanduser(image))
    return ImageRef(facts.pop("image_id", "") or _text(image), image, "", facts)


def _members(path: str) -> Iterator[ImageRef]:
    with open_archive(path) as archive:
        for name in sorted(archive.namelist()):
            parts = pathlib.PurePosixPath(name).parts
            hidden = any(part.startswith((".", "__MACOSX")) and part != ".." for part in parts)
            if name.lower().endswith(SUFFIXES) and not hidden:
                yield ImageRef(_text(f"{path}/{name}"), path, name)
