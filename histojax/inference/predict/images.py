"""Find the images that a command line names: files, folders, globs, lists and zip archives."""

import dataclasses
import fnmatch
import functools
import glob
import hashlib
import logging
import os
import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

from data_pipelines.tables import path_in, read_table
from histojax.core.errors import RunError
from histojax.core.printable import printable
from histojax.core.walk import check_readable, find_files, order

_log = logging.getLogger(__name__)
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".jp2", ".j2k", ".jpx")
_INPUTS = (*SUFFIXES, ".zip", ".csv")
_RESERVED = ("prob_", "predicted", "novelty")  # prefixes of the columns that prediction adds to the table


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image is stored.

    Attributes:
      image_id: unique name in the table: the path as given, or the name from a list; always valid UTF-8.
      path: path of the image file, or of the archive that contains it, as the file system spells it.
      member: name inside the archive; empty for an image file.
      facts: further columns from a list, such as patient_id or label.
    """

    image_id: str
    path: str
    member: str = ""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def find(paths: Sequence[str]) -> list[ImageRef]:
    """Find all images that the given paths name, in order and each once.

    Args:
      paths: image files; folders, searched recursively as `find_files` does; globs (`**` matches any depth); lists
        (.csv) with a column `path`, relative to the list, and any further columns; zip archives. A list may name files
        that do not exist: like damaged files and broken links, they are reported as unreadable later.

    Raises:
      RunError: no image found, a path that does not exist, a folder that cannot be read, a list without a column `path`
        or with reserved columns, an invalid archive, or two different images with the same name.
      DataError: a list cannot be read.
    """
    refs: dict[str, ImageRef] = {}
    num_repeated = 0
    for ref in (ref for path in paths for ref in _expand(path)):
        first = refs.setdefault(ref.image_id, ref)
        if first is not ref:
            num_repeated += 1
            if first != ref:
                raise RunError(
                    f"{ref.image_id}: two images have this name, or two lists describe this image differently; "
                    "give each image once (a column image_id in a list renames images)"
                )
    if not refs:
        raise RunError(f"{', '.join(map(printable, paths))}: no image found ({', '.join(SUFFIXES)})")
    if num_repeated:
        _log.info("%d images were given more than once; each is used once", num_repeated)
    return list(refs.values())


def fingerprint(refs: Iterable[ImageRef]) -> str:
    """Compute 16 hex digits that change when a name, a file size or a modification time changes."""
    stamp = functools.lru_cache(maxsize=1)(_stamp)  # the members of an archive follow one another
    digest = hashlib.sha256()
    for ref in refs:
        digest.update(f"{ref.image_id}\0{stamp(ref.path)}\0".encode())
    return digest.hexdigest()[:16]


def open_archive(path: str) -> zipfile.ZipFile:
    """Open a zip archive for reading.

    Raises:
      RunError: the file is damaged or not a zip archive.
    """
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        raise RunError(f"{printable(path)}: cannot be read as a zip archive ({error})") from error


def names_of(path: str) -> list[str]:
    """List the names that an image may be known by, most specific first: ever shorter ends of its path.

    Each end also comes without the suffix of an image file.
    """
    parts = [part for part in path.replace("\\", "/").split("/") if part]
    names = [path] if path else []
    for i in range(len(parts)):
        name = "/".join(parts[i:])
        stem, dot, suffix = name.rpartition(".")
        names += [name, stem] if dot and f".{suffix.lower()}" in SUFFIXES else [name]
    return list(dict.fromkeys(names))


def _stamp(path: str) -> str:
    try:
        stat = os.stat(path)
    except OSError as error:
        return str(error.strerror)
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _expand(text: str) -> Iterator[ImageRef]:
    """Yield the images that one argument names, which may be a glob."""
    path = os.path.expanduser(text)
    if not os.path.lexists(path) and glob.has_magic(path):
        for match in sorted(_below_any_depth(path) if "**" in path.split(os.sep) else _matches(path)):
            if os.path.isdir(match) or match.lower().endswith(_INPUTS):
                yield from _expand_path(match)
    else:
        yield from _expand_path(path)


def _matches(pattern: str) -> list[str]:
    """Return the paths that match a glob without `**`.

    Raises:
      RunError: a folder cannot be read; `glob` alone would pass it over.
    """
    parts = pattern.split(os.sep)
    for end, part in enumerate(parts):
        if glob.has_magic(part):
            for folder in glob.glob(os.sep.join(parts[:end]) or os.sep) if end else ["."]:
                check_readable(folder)
    return glob.glob(pattern)


def _below_any_depth(pattern: str) -> list[str]:
    """Return the files that match a glob with `**`, or are in a folder that does; circular links end."""
    parts = pattern.split(os.sep)
    start = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = os.sep.join(parts[:start]) or (os.sep if start else os.curdir)
    if not os.path.isdir(root):
        return []
    found = find_files(root, _INPUTS)
    matching = []
    for path in (*found.paths, *found.broken):
        names = os.path.relpath(path, root).split(os.sep)
        if any(_fits(names[:end], parts[start:]) for end in range(1, len(names) + 1)):
            matching.append(path if start else os.sep.join(names))
    return matching


def _fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a path match those of a glob."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return _fits(names, pattern[1:]) or (bool(names) and _fits(names[1:], pattern))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


def _expand_path(path: str) -> Iterator[ImageRef]:
    if not os.path.lexists(path):
        raise RunError(f"{printable(path)}: no such file or folder")
    if os.path.isdir(path):
        for image in _walk(path):
            yield ImageRef(printable(image), image)
    elif path.lower().endswith(".csv"):
        yield from _read_list(path)
    elif path.lower().endswith(".zip"):
        yield from _archive_members(path)
    else:
        yield ImageRef(printable(path), path)


def _walk(root: str) -> Iterator[str]:
    """Yield the images below a folder, each once, and the links to nothing, which are reported as unreadable later."""
    found = find_files(root, SUFFIXES)
    for line in found.report():
        _log.warning("%s", line)
    if found.repeated:
        _log.warning("%d links lead to images that are found already; each is used once", len(found.repeated))
    broken = (path for path in found.broken if path.lower().endswith(SUFFIXES))
    yield from sorted([*found.paths, *broken], key=order)


def _read_list(path: str) -> Iterator[ImageRef]:
    name = printable(path)
    # Paths need not be UTF-8: surrogateescape keeps their bytes.
    columns, rows = read_table(pathlib.Path(path), errors="surrogateescape", pad=True)
    if "path" not in columns:
        raise RunError(f"{name}: no column `path`; a list of images has path[,patient_id][,label][,…]")
    if "" in columns or any(column.startswith(_RESERVED) for column in columns):
        raise RunError(
            f"{name}: columns {', '.join(map(printable, columns))}: each needs a name that does not begin with "
            f"{' or '.join(_RESERVED)}"
        )
    for place, row in rows:
        yield _ref_from_row(path, row, place)


def _ref_from_row(path: str, row: Mapping[str, str], place: str) -> ImageRef:
    facts = {printable(column): printable(cell) for column, cell in row.items() if column != "path"}
    if not row["path"]:
        raise RunError(f"{place}: no image path is given")
    image = os.path.join(os.path.dirname(path), os.path.expanduser(row["path"]))
    if "\\" in row["path"] and not os.path.lexists(image):  # a list that Windows wrote
        image = str(path_in(pathlib.Path(path).parent, row["path"]))
    return ImageRef(facts.pop("image_id", "") or printable(image), image, "", facts)


def _archive_members(path: str) -> Iterator[ImageRef]:
    with open_archive(path) as archive:
        for name in sorted(archive.namelist()):
            parts = pathlib.PurePosixPath(name).parts
            hidden = any(part.startswith((".", "__MACOSX")) and part != ".." for part in parts)
            if name.lower().endswith(SUFFIXES) and not hidden:
                yield ImageRef(printable(f"{path}/{name}"), path, name)
