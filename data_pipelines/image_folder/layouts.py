"""The images below a root and their classes, by a table or by the names of their folders; no pixels are read here."""

import dataclasses
import json
import math
import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from data_pipelines.errors import DataError
from data_pipelines.image_folder import recipes
from data_pipelines.image_folder.sources import find_source
from data_pipelines.image_folder.spec import COLUMNS, GROUPS, SIDE_GROUPS, FolderSpec
from data_pipelines.tables import SIDES, choose_table, list_tables, path_in, read_side, read_table, usable_sides
from histojax.core.printable import printable
from histojax.core.suggestions import did_you_mean
from histojax.core.walk import Files, describe, find_files

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".jp2", ".j2k", ".webp")
_LISTED = 3


@dataclasses.dataclass(frozen=True)
class Item:
    """An image file, and what its table or its folders say about it.

    Attributes:
      path: the image; of a source of one's own, its name below the root.
      label: its class.
      patient_id: empty: unknown; so are the fields below.
      case_id: what certainly shares tissue.
      slide_id: the slide.
      site: the hospital or scanner.
      magnification: such as `40X`.
      given_split: train, val or test.
      mpp: µm per pixel, as text.
      further: the other cells of its row, as a record stores them.
      read: returns the bytes of an image of a source; None: `path` is a file.
    """

    path: pathlib.Path
    label: str
    patient_id: str = ""
    case_id: str = ""
    slide_id: str = ""
    site: str = ""
    magnification: str = ""
    given_split: str = ""
    mpp: str = ""
    further: str = ""
    read: Callable[[], bytes] | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """The content of a root.

    Attributes:
      layout: `table`, `folders` or `source`.
      items: the images, sorted by path.
      bad: image -> why it cannot be used.
      notes: remarks for the user, with their counts.
      files: all files that were considered.
      report: a line for each kind of file that is not read.
    """

    layout: str
    items: tuple[Item, ...]
    bad: dict[str, str]
    notes: Counter[str]
    files: tuple[pathlib.Path, ...]
    report: tuple[str, ...] = ()


def find(root: pathlib.Path, spec: FolderSpec) -> Found:
    """Find the images below `root` and their classes.

    A table with the columns of a path and a label decides; without one, the folders do.

    Raises:
      DataError: no image, no class, labels that are spelt in several ways, a table that cannot be used, or other
        numbers of images than the recipe's.
      RunError: a folder cannot be read.
    """
    if not spec.recipe:
        return _find(root, spec)
    recipe = recipes.find(spec.recipe)
    try:
        found = _find(root, spec)
    except DataError as error:
        raise DataError(
            f"{error}\ndata.images.recipe={spec.recipe} reads {recipe.layout}. Published at {recipe.get}"
        ) from error
    recipes.check(spec.recipe, root, found.items, spec.part)
    noted = Counter({recipe.caveat: len(found.items)} if recipe.caveat else {})
    return dataclasses.replace(found, notes=found.notes + noted)


def _find(root: pathlib.Path, spec: FolderSpec) -> Found:
    if not root.is_dir():
        raise DataError(f"{printable(root)}: no such folder (data.root)")
    if spec.source:
        found = _from_source(root, spec)
        _check_labels(root, found)
        return found
    tables = list_tables(root)
    if spec.table or any(_fits(path, spec) for path in tables):
        found = _from_table(root, spec, tables)
    else:
        found = _from_folders(root, spec, tables)
    _check_labels(root, found)
    return found


def name_of(path: pathlib.Path, root: pathlib.Path) -> str:
    """Return the name of an image below `root`: its path relative to it, as text."""
    return printable(path.relative_to(root) if path.is_relative_to(root) else path)


def _fits(path: pathlib.Path, spec: FolderSpec) -> bool:
    """Return whether a table can be read and has the two columns that are needed."""
    try:
        header = {name.lower() for name in read_table(path)[0]}
    except DataError:
        return False
    return all(spec.column(name).lower() in header for name in spec.required)


def _from_table(root: pathlib.Path, spec: FolderSpec, tables: Sequence[pathlib.Path]) -> Found:
    """Read the images that a table lists; no other file of the root is looked at."""
    fitting = [path for path in tables if _fits(path, spec)]
    path = choose_table(root, spec.table, fitting or tables, "data.images.table")
    header, lines = read_table(path)
    names = _columns(path, header, spec)
    named_columns = set(names.values())
    items: list[Item] = []
    seen: dict[pathlib.Path, str] = {}
    for place, row in lines:
        cells = {field: row[name] for field, name in names.items()}
        for field in spec.required:
            if not cells[field]:
                raise DataError(f"{place}, column {names[field]}: empty; fill it in, or remove the row")
        named = cells.pop("path", "")
        image = path_in(path.parent, spec.path_cell(place, row) if spec.path_template else named)
        if image in seen:
            column = "" if spec.path_template else f", column {names['path']}"
            raise DataError(f"{place}{column}: '{printable(image.name)}' is already in {seen[image]}")
        seen[image] = place
        cells["given_split"] = read_side(place, cells.pop("split", ""))
        if "mpp" in cells:
            cells["mpp"] = _mpp(f"{place}, column {names['mpp']}", cells["mpp"])
        if further := {name: cell for name, cell in row.items() if name and name not in named_columns}:
            cells["further"] = json.dumps(further, ensure_ascii=False)
        items.append(_with_groups(_item(image, cells), spec, root))
    if not items:
        raise DataError(f"{printable(path)}: no row below the header")
    missing = {item.path for item in items if not item.path.is_file()}
    if len(missing) == len(items):
        raise DataError(
            f"{printable(path)}: none of its {len(items)} files exists, such as {printable(min(missing))}; paths are "
            "relative to the table's folder"
        )
    bad = {name_of(image, root): "listed in the table, but the file does not exist" for image in missing}
    files = sorted({item.path for item in items} - missing | {path})
    kept, notes = usable_sides(sorted((i for i in items if i.path not in missing), key=lambda item: item.path))
    return Found("table", tuple(kept), bad, notes, tuple(files))


def _mpp(place: str, cell: str) -> str:
    """Return the µm per pixel that a cell means, as text; a spreadsheet may have written a comma for the point.

    Raises:
      DataError: the cell is neither empty nor a number above 0.
    """
    try:
        number = float(cell.replace(",", ".") or "nan")
    except ValueError:
        number = -1.0
    if cell and not 0 < number < math.inf:
        raise DataError(
            f"{place}: '{printable(cell)}' is not a number of µm per pixel above 0; correct it, or leave the cell "
            "empty if it is unknown"
        )
    return f"{number:.6g}" if cell else ""


def _from_source(root: pathlib.Path, spec: FolderSpec) -> Found:
    """Take the images of a source of one's own."""
    source = find_source(spec.source)
    place = root / spec.table if spec.table else root
    items: dict[str, Item] = {}
    for image in source.images(place):
        name = image.image_id
        if not name or name in items or not image.label:
            fault = "no label" if name and name not in items else f"the name '{name}', which is not unique"
            raise DataError(f"data.images.source={spec.source}, image {len(items)}: has {fault}")
        items[name] = _item(root / name, dataclasses.asdict(image), image.read)
    if not items:
        raise DataError(f"data.images.source={spec.source}: has no image in {printable(place)}")
    kept, notes = usable_sides(items.values())
    return Found("source", tuple(kept), {}, notes, tuple(source.files(place)))


def _item(path: pathlib.Path, cells: Mapping[str, str], read: Callable[[], bytes] | None = None) -> Item:
    """Make an item of what a table or a source says about an image."""
    return Item(
        path,
        label=cells["label"],
        patient_id=cells.get("patient_id", ""),
        case_id=cells.get("case_id", ""),
        slide_id=cells.get("slide_id", ""),
        site=cells.get("site", ""),
        magnification=cells.get("magnification", ""),
        given_split=cells["given_split"],
        mpp=cells.get("mpp", ""),
        further=cells.get("further", ""),
        read=read,
    )


def _columns(path: pathlib.Path, header: Sequence[str], spec: FolderSpec) -> dict[str, str]:
    """Return what is known -> the table's column that says it. Capitals do not matter.

    Raises:
      DataError: a column is missing that is needed or that the user named, or two differ only in capitals.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in header:
        by_name[name.lower()].append(name)
    found = {}
    for field in COLUMNS:
        wanted = spec.column(field)
        same = by_name.get(wanted.lower(), [])
        if len(same) > 1:
            raise DataError(f"{printable(path)}: the columns {' and '.join(same)} differ only in capitals; rename one")
        if same:
            found[field] = same[0]
        elif field in spec.required or field in dict(spec.columns):
            raise DataError(
                f"{printable(path)}: no column {wanted}{did_you_mean(wanted, header)}; it has "
                f"{printable(', '.join(header))}. Name the right one with --config.data.images.columns.{field}=NAME"
            )
    return found


def _from_folders(root: pathlib.Path, spec: FolderSpec, tables: Sequence[pathlib.Path]) -> Found:
    """Take the class of each image from the first folder below the one that holds all classes, or train, val, test."""
    walked = find_files(root, SUFFIXES)
    images = walked.with_links()
    if not images:
        raise DataError(_no_images(root, walked, tables, spec))
    folders = [path.relative_to(root).parts[:-1] for path in images]
    depth = _shared_depth(folders)
    sided = all(len(parts) > depth + 1 and parts[depth].lower() in SIDES for parts in folders)
    items, homeless = [], []
    for path, parts in zip(images, folders, strict=True):
        side = SIDES[parts[depth].lower()] if sided else ""
        below = parts[depth + sided :]
        if below or spec.labels_from_paths:
            label = "" if spec.labels_from_paths else below[0].strip()
            items.append(_with_groups(Item(path, label, given_split=side), spec, root))
        else:
            homeless.append(path)
    if homeless:
        raise DataError(
            f"{printable(root)}: {len(homeless)} of {len(images)} images are in no class folder, such as "
            f"{name_of(homeless[0], root)}; sort them into one folder per class, or write a table with the columns "
            "path and label"
        )
    bad = {name_of(pathlib.Path(p), root): why for p, why in walked.broken.items() if p.lower().endswith(SUFFIXES)}
    kept, notes = usable_sides(items)
    files = (*images, *sorted(map(pathlib.Path, walked.broken)))
    return Found("folders", tuple(kept), bad, notes, files, tuple(walked.report()))


def _no_images(root: pathlib.Path, walked: Files, tables: Sequence[pathlib.Path], spec: FolderSpec) -> str:
    text = (
        f"{printable(root)}: no image below this folder ({', '.join(SUFFIXES)}); its files are "
        f"{describe(walked.passed_over)}. Expected one folder per class, or a table with the columns "
        f"{spec.column('path')} and {spec.column('label')}"
    )
    if tables:
        header = ", ".join(read_table(tables[0])[0])
        text += f"; {printable(tables[0].name)} has {printable(header)} (--config.data.images.columns.label=NAME)"
    return text


def _shared_depth(folders: Sequence[tuple[str, ...]]) -> int:
    """Return the number of folders that all images share, such as 2 for histology_slides/breast."""
    depth = 0
    while len({parts[depth] if len(parts) > depth else None for parts in folders}) == 1 and len(folders[0]) > depth + 1:
        depth += 1
    return depth


def _with_groups(item: Item, spec: FolderSpec, root: pathlib.Path) -> Item:
    """Add the groups that the pattern finds in an image's path; what a table says stays.

    Raises:
      DataError: the path does not match the pattern.
    """
    if not spec.group_pattern:
        return item
    name = name_of(item.path, root)
    match = re.search(spec.group_pattern, name)
    if match is None:
        raise DataError(f"{name}: does not match data.images.group_pattern='{spec.group_pattern}'")
    for key, value in match.groupdict().items():
        field, known = ("given_split", key) if key in SIDE_GROUPS else (GROUPS[key], value)
        if value and not getattr(item, field):
            item = dataclasses.replace(item, **{field: known})  # type: ignore[arg-type]
    if not item.label:
        raise DataError(f"{name}: data.images.group_pattern='{spec.group_pattern}' finds no label in this path")
    return item


def _check_labels(root: pathlib.Path, found: Found) -> None:
    """Verify that there are two classes, whose names differ by more than capitals, spaces, hyphens or underscores.

    Raises:
      DataError: that is not so.
    """
    counts = Counter(item.label for item in found.items)
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        spellings[re.sub(r"[\s_-]+", "", label).lower()].append(label)
    for same in spellings.values():
        if len(same) > 1:
            listed = " and ".join(f"'{printable(label)}' (images: {counts[label]})" for label in sorted(same))
            raise DataError(f"{printable(root)}: the classes {listed} differ only in spelling; give them one name")
    for label in counts:
        if "+" in label or any(ord(character) < 32 for character in label):
            raise DataError(
                f"{printable(root)}: the class '{printable(label)}' has a character that results cannot hold "
                "('+', or a line break); rename it"
            )
    if len(counts) < 2:
        (label,) = counts
        where = {"table": "the table's column of labels", "source": "the source"}.get(
            found.layout, "a folder for each class"
        )
        raise DataError(
            f"{printable(root)}: every image is of the class '{printable(label)}', but a classifier needs two; "
            f" expected them in {where}. Images with several labels each: --config ldcsf_liver"
        )


def image_ids(items: Iterable[Item], root: pathlib.Path) -> dict[pathlib.Path, str]:
    """Return a unique name for each image: its file's name without suffix if that is unique, else its path."""
    items = list(items)
    paths = [item.path for item in items]
    if any(item.read for item in items):
        return {path: name_of(path, root) for path in paths}
    stems = Counter(path.stem for path in paths)
    below = {path: name_of(path, root).removesuffix(path.suffix) for path in paths}
    bare = Counter(below.values())
    return {
        path: printable(path.stem)
        if stems[path.stem] == 1
        else below[path]
        if bare[below[path]] == 1
        else name_of(path, root)
        for path in paths
    }
