"""Which images an audit looks at, what is known of each, and which side of which split it stands on."""

import collections
import csv
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

from data_pipelines.breakhis import filenames
from data_pipelines.errors import DataError
from data_pipelines.listing import list_files
from data_pipelines.liver_tiles.table import SIDES
from data_pipelines.official_folds import read_folds

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_FOLDS = range(1, 6)


@dataclasses.dataclass(frozen=True)
class Source:
    """An image that is to be looked at, and what is known of it before.

    Attributes:
      path: of the file.
      name: path below the root, or what the list says; always encodable.
      image_id: its name in the program's own splits.
      label: of BreakHis `benign/A` … `malignant/PC`; of a list what it says; else the folder's name. Empty: unknown.
      patient_id, case_id, magnification: empty where unknown.
      given_split: the side that the list or the folders give; empty: none.
      breakhis: what a file name of BreakHis's grammar says; None for others.
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
    """The images of a folder with all below it, or of a list `path,label[,patient_id][,case_id][,split]`, sorted.

    BreakHis's images are known by their names, whatever the folders (and whether `.png` or not). In other folders the
    name of an image's folder is its class; where the first folders below the root are called train, val and test (or
    the like), they are its side.

    Raises:
      DataError: no image, no such folder, a list that is none.
    """
    if root.is_file():
        return _listed(root)
    if not root.is_dir():
        raise DataError(f"{text(root)}: no such folder or list (.csv)")
    paths = list_files(root, SUFFIXES)
    if not paths:
        raise DataError(f"{text(root)}: no image below this folder ({', '.join(SUFFIXES)})")
    first = {path.relative_to(root).parts[0].lower() for path in paths}
    sides = SIDES if first <= SIDES.keys() else {}
    bare = collections.Counter(path.with_suffix("") for path in paths)
    sources = []
    for path in paths:
        below = path.relative_to(root)
        name = text(below.as_posix())
        image_id = text(below.with_suffix("").as_posix()) if bare[path.with_suffix("")] == 1 else name
        folder = text(below.parent.name) if below.parent.name.lower() not in sides else ""
        source = Source(path, name, image_id, folder, given_split=sides.get(below.parts[0].lower(), ""))
        sources.append(_by_name(source))
    return sources


def departures(sources: Sequence[Source]) -> dict[str, str]:
    """What is wrong with the names of images among BreakHis's, name -> reason; none where most are not BreakHis's."""
    named = sum(source.breakhis is not None for source in sources)
    if 2 * named <= len(sources):
        return {}
    found = {}
    for source in sources:
        if source.breakhis is None:
            try:
                filenames.parse(source.path.name)
            except filenames.BadNameError as error:
                found[source.name] = text(str(error))
    return found


def read_split(
    path: pathlib.Path, root: pathlib.Path, sources: Sequence[Source]
) -> tuple[list[Source], list[str], int]:
    """A split from a table with columns `image_id` or `path`, and `split`, as training writes it or anybody else.

    Returns:
      The sources, with patient and case of the table where nothing was known; the side of each (empty: none, or left
      out); the number of rows that name no image of the root.

    Raises:
      DataError: other columns, an unknown side, a row that may mean several images, no row that names an image.
    """
    found, sides, strange = list(sources), [""] * len(sources), 0
    index = _Index(sources)
    for place, row in _rows(path):
        key = row.get("image_id") or row.get("path")
        if not key or "split" not in row:
            raise DataError(f"{place}: a split needs the columns image_id (or path) and split, and a name in each row")
        side = _side(place, row["split"])
        positions = index.find(key, (path.parent, root), place)
        strange += not positions
        for i in positions:
            if sides[i] and side and sides[i] != side:
                raise DataError(f"{place}: '{text(key)}' stands in {sides[i]}, says an earlier row, and in {side}")
            sides[i] = sides[i] or side
            found[i] = dataclasses.replace(
                found[i],
                patient_id=found[i].patient_id or text(row.get("patient_id", "")),
                case_id=found[i].case_id or text(row.get("case_id", "")),
            )
    if not any(sides):
        raise DataError(f"{text(path)}: no row names an image of {text(root)}, such as '{sources[0].image_id}'")
    return found, sides, strange


def read_fold_sides(folder: pathlib.Path, sources: Sequence[Source]) -> dict[str, list[str]]:
    """The sides of each image in each of BreakHis's published folds whose file is there, `fold N` -> sides.

    Raises:
      DataError: there is no file, a line is not of its form, or a fold names none of the images.
    """
    there = [fold for fold in _FOLDS if (folder / f"dsfold{fold}.txt").is_file()] or [_FOLDS[0]]
    sides = {}
    for fold in there:
        given = read_folds(folder, fold)
        sides[f"fold {fold}"] = [given.get(s.breakhis.image_id, "") if s.breakhis else "" for s in sources]
        if not any(sides[f"fold {fold}"]):
            raise DataError(f"{folder}/dsfold{fold}.txt names none of the {len(sources)} images")
    return sides


def text(name: str | os.PathLike[str]) -> str:
    """A file's name that a table can hold: bytes that are no UTF-8 as `\\xff`."""
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _by_name(source: Source) -> Source:
    """The source with what a file name of BreakHis's grammar says."""
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


def _listed(path: pathlib.Path) -> list[Source]:
    """The images of a list; what it says goes before what a file's name says."""
    sources: dict[str, Source] = {}
    for place, row in _rows(path):
        if not row.get("path") or "label" not in row:
            raise DataError(f"{place}: a list needs the columns path and label, and a path in each row")
        name = text(row["path"])
        if name in sources:
            raise DataError(f"{place}: '{name}' stands in an earlier row, too")
        bare = _by_name(Source(path.parent / row["path"], name, text(row.get("image_id", "")) or name, ""))
        sources[name] = dataclasses.replace(
            bare,
            label=text(row["label"]) or bare.label,
            patient_id=text(row.get("patient_id", "")) or bare.patient_id,
            case_id=text(row.get("case_id", "")) or bare.case_id,
            magnification=text(row.get("magnification", "")) or bare.magnification,
            given_split=_side(place, row.get("split", "")),
        )
    if not sources:
        raise DataError(f"{text(path)}: no row below the header")
    return list(sources.values())


def _rows(path: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with their places; paths need not be UTF-8, their bytes pass through."""
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if len(set(columns)) < len(columns):
                raise DataError(f"{text(path)}: a column stands twice in {', '.join(map(text, columns))}")
            for row in reader:
                place = f"{text(path)}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{place}: not as many cells as the {len(columns)} of the header")
                if "\0" in "".join(row.values()):
                    raise DataError(f"{place}: a zero byte")
                yield place, {key: cell.strip() for key, cell in row.items()}
    except (OSError, csv.Error) as error:
        raise DataError(f"{text(path)}: not readable as a table ({error})") from error


def _side(place: str, cell: str) -> str:
    if cell and cell.lower() not in SIDES:
        raise DataError(f"{place}, column split: '{text(cell)}' is none of {', '.join(SIDES)}, or empty for left out")
    return SIDES.get(cell.lower(), "")


class _Index:
    """Finds the images that a name in a split means."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._ids: dict[str, list[int]] = {}
        self._paths: dict[str, list[int]] = {}
        self._files: dict[str, list[int]] = {}
        for i, source in enumerate(sources):
            for key in {source.image_id, source.name, os.path.splitext(source.name)[0]}:
                self._ids.setdefault(key, []).append(i)
            self._paths.setdefault(os.path.realpath(source.path), []).append(i)
            for key in {source.path.name, source.path.stem}:
                self._files.setdefault(text(key), []).append(i)

    def find(self, key: str, folders: Sequence[pathlib.Path], place: str) -> list[int]:
        """Positions: by id or path, else by file name alone.

        Raises:
          DataError: several images have that file name.
        """
        if found := self._ids.get(text(key)):
            return found
        for folder in folders:
            if found := self._paths.get(os.path.realpath(folder / key)):
                return found
        found = self._files.get(text(pathlib.PurePath(key).name), [])
        if len(found) > 1:
            raise DataError(f"{place}: '{text(key)}' may be any of {len(found)} images; name it by its path")
        return found
