"""The images of an audit, what is known about each, and its side in each split."""

import collections
import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence

from data_pipelines.audit import split_files
from data_pipelines.breakhis import filenames
from data_pipelines.errors import DataError
from data_pipelines.tables import SIDES, path_in, read_side, read_table
from histojax.core.printable import printable
from histojax.core.walk import describe, find_files

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
    """An image to audit, and what is known about it before its pixels are read.

    Attributes:
      path: the file.
      name: path below the root, or the path in the list; always encodable as UTF-8.
      image_id: its name in this program's own splits.
      label: for BreakHis `benign/A` … `malignant/PC`; else the label in the list or the folder's name. Empty: unknown.
      patient_id: empty: unknown.
      case_id: empty: unknown.
      magnification: empty: unknown.
      given_split: the side by the list or the folders; empty: none.
      breakhis: the parsed name if it follows the BreakHis grammar.
    """

    path: pathlib.Path
    name: str
    image_id: str
    label: str
    patient_id: str = ""
    case_id: str = ""
    magnification: str = ""
    given_split: str = ""
    breakhis: filenames.ImageName | None = None


def find(root: pathlib.Path) -> list[Source]:
    """Find the images of a root, as `find_with_report` does, and log what is not read."""
    sources, report = find_with_report(root)
    for line in report:
        _log.warning("%s", line)
    return sources


def find_with_report(root: pathlib.Path) -> tuple[list[Source], list[str]]:
    """Find the images below a folder, or in a list `path,label[,patient_id][,case_id][,split]`, sorted.

    BreakHis images are recognised by their names, in any folder and with any image suffix. For other images the name of
    the folder is the class; if the folders directly below the root are called train, val and test (or similar), they
    are the side.

    Returns:
      The images, and a line for each kind of file that is not read.

    Raises:
      DataError: no image, no such folder, or a malformed list.
    """
    if root.is_file():
        return _read_list(root), []
    if not root.is_dir():
        raise DataError(f"{printable(root)}: no such folder or list (.csv)")
    found = find_files(root, SUFFIXES)
    unreadable = [pathlib.Path(path) for path in found.broken if path.lower().endswith(SUFFIXES)]
    paths = sorted([*found.with_links(), *unreadable])
    if not paths:
        raise DataError(
            f"{printable(root)}: no image below this folder ({', '.join(SUFFIXES)}); its files are "
            f"{describe(found.passed_over)}"
        )
    first = {path.relative_to(root).parts[0].lower() for path in paths}
    sides = SIDES if first <= SIDES.keys() else {}
    bare = collections.Counter(path.with_suffix("") for path in paths)
    sources = []
    for path in paths:
        below = path.relative_to(root)
        name = printable(below.as_posix())
        image_id = printable(below.with_suffix("").as_posix()) if bare[path.with_suffix("")] == 1 else name
        folder = printable(below.parent.name) if below.parent.name.lower() not in sides else ""
        source = Source(path, name, image_id, folder, given_split=sides.get(below.parts[0].lower(), ""))
        sources.append(from_name(source))
    return sources, found.report()


def misnamed(sources: Sequence[Source]) -> dict[str, str]:
    """Return the images whose names break the BreakHis grammar, name -> reason; none unless most names follow it."""
    named = sum(source.breakhis is not None for source in sources)
    if 2 * named <= len(sources):
        return {}
    problems = {}
    for source in sources:
        if source.breakhis is None:
            try:
                filenames.parse(source.path.name)
            except filenames.BadNameError as error:
                problems[source.name] = printable(str(error))
    return problems


def read_split(
    path: pathlib.Path, root: pathlib.Path, sources: Sequence[Source]
) -> tuple[list[Source], dict[str, list[str]], int]:
    """Read the splits in a file, as `split_files.read` does, for the images of a root.

    Returns:
      The sources, with unknown patients and cases filled in from the file; split -> the side of each source (empty:
      none, or left out); the number of rows that name no image of the root.

    Raises:
      DataError: the file has another form, a row may mean several images, or no row names an image.
    """
    updated, splits, unmatched = list(sources), {}, 0
    index = _Index(sources)
    for split, rows in split_files.read(path).items():
        sides = splits[split] = [""] * len(sources)
        for row in rows:
            positions = index.find(row.name, (path.parent, root), row.place)
            unmatched += not positions
            for i in positions:
                if sides[i] and row.side and sides[i] != row.side:
                    raise DataError(
                        f"{row.place}: '{printable(row.name)}' is in {row.side}, but in {sides[i]} in an earlier row"
                    )
                sides[i] = sides[i] or row.side
                updated[i] = dataclasses.replace(
                    updated[i],
                    patient_id=updated[i].patient_id or row.patient_id,
                    case_id=updated[i].case_id or row.case_id,
                )
    if not any(any(sides) for sides in splits.values()):
        raise DataError(
            f"{printable(path)}: no row names an image of {printable(root)}; names look like '{sources[0].image_id}'"
        )
    return updated, splits, unmatched


def read_fold_sides(folder: pathlib.Path, sources: Sequence[Source]) -> dict[str, list[str]]:
    """Read the published BreakHis folds whose files exist.

    Returns:
      `fold N` -> the side of each source.

    Raises:
      DataError: no file, a malformed line, or a fold that names none of the images.
    """
    sides = {}
    for fold, rows in split_files.read(folder).items():
        given = {row.name: row.side for row in rows}
        sides[fold] = [given.get(s.breakhis.image_id, "") if s.breakhis else "" for s in sources]
        if not any(sides[fold]):
            raise DataError(f"{rows[0].place} names none of the {len(sources)} images")
    return sides


def from_name(source: Source) -> Source:
    """Return a source with what its file name says, if it follows the BreakHis grammar."""
    try:
        name = filenames.parse(source.path.stem + ".png")
    except filenames.BadNameError:
        return source
    return dataclasses.replace(
        source,
        image_id=name.image_id,
        label=f"{name.label}/{name.subtype}",
        patient_id=name.patient_id,
        case_id=name.case_id,
        magnification=name.magnification,
        breakhis=name,
    )


def _read_list(path: pathlib.Path) -> list[Source]:
    """Read the images of a list; the list overrides what a file's name says."""
    sources: dict[str, Source] = {}
    for place, row in read_table(path, errors="surrogateescape")[1]:
        if not row.get("path") or "label" not in row:
            raise DataError(f"{place}: a list needs the columns path and label, and a path in each row")
        name = printable(row["path"])
        if name in sources:
            raise DataError(f"{place}: '{name}' is already in an earlier row")
        bare = from_name(
            Source(path_in(path.parent, row["path"]), name, printable(row.get("image_id", "")) or name, "")
        )
        sources[name] = dataclasses.replace(
            bare,
            label=printable(row["label"]) or bare.label,
            patient_id=printable(row.get("patient_id", "")) or bare.patient_id,
            case_id=printable(row.get("case_id", "")) or bare.case_id,
            magnification=printable(row.get("magnification", "")) or bare.magnification,
            given_split=read_side(place, row.get("split", "")),
        )
    if not sources:
        raise DataError(f"{printable(path)}: no row below the header")
    return list(sources.values())


class _Index:
    """Finds the images that a name in a split refers to."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._ids: dict[str, list[int]] = {}
        self._paths: dict[str, list[int]] = {}
        self._files: dict[str, list[int]] = {}
        for i, source in enumerate(sources):
            for key in {source.image_id, source.name, os.path.splitext(source.name)[0]}:
                self._ids.setdefault(key, []).append(i)
            self._paths.setdefault(os.path.realpath(source.path), []).append(i)
            for key in {source.path.name, source.path.stem}:
                self._files.setdefault(printable(key), []).append(i)

    def find(self, key: str, folders: Sequence[pathlib.Path], place: str) -> list[int]:
        """Return positions by id or path, else by file name alone.

        Raises:
          DataError: several images have that file name.
        """
        unix = key.replace("\\", "/")  # a table that Windows wrote
        if found := self._ids.get(printable(key)) or self._ids.get(printable(unix)):
            return found
        for folder in folders:
            if found := self._paths.get(os.path.realpath(path_in(folder, key))):
                return found
        found = self._files.get(printable(pathlib.PurePath(key).name)) or self._files.get(
            printable(pathlib.PurePath(unix).name), []
        )
        if len(found) > 1:
            raise DataError(f"{place}: '{printable(key)}' may be any of {len(found)} images; give its path")
        return found
