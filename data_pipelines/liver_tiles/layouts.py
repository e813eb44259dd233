"""The images below a root, and their labels by table, names, folders or masks; no pixels are read here."""

import dataclasses
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from data_pipelines.errors import DataError
from data_pipelines.liver_tiles import masks, table
from data_pipelines.liver_tiles.spec import LIVER_LABELS, TilesSpec
from data_pipelines.liver_tiles.table import has_paths
from data_pipelines.records import label_set
from data_pipelines.tables import SIDES, SUFFIXES, choose_table, list_tables, usable_sides
from histojax.core.printable import printable
from histojax.core.walk import describe, find_files

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_MASK_FOLDERS = ("mask", "masks")
_IMAGE_FOLDERS = ("img", "image", "images")
_VECTOR = re.compile(r"\[\s*([01](?:[\s,_]*[01])*)\s*\]$")  # name[1 0 0 1]


@dataclasses.dataclass(frozen=True)
class Item:
    """An image file and what is known about it without opening it.

    Attributes:
      path: the image.
      labels: names of its labels, in order; empty if they come from the mask.
      patient_id: empty: unknown.
      slide_id: empty: unknown.
      source_id: empty: unknown.
      given_split: train, val or test; empty: none.
      mask: the file with the class of each pixel, in the layout `masks`.
    """

    path: pathlib.Path
    labels: tuple[str, ...] = ()
    patient_id: str = ""
    slide_id: str = ""
    source_id: str = ""
    given_split: str = ""
    mask: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """The content of a root.

    Attributes:
      layout: table, names, folders or masks.
      labels: all labels, in the order of the model's outputs.
      items: the images, sorted by path.
      bad: image -> why it cannot be used.
      notes: remarks for the user, with their counts.
      files: all files that were considered: images, masks, the table.
      report: a line for each kind of file that is not read.
    """

    layout: str
    labels: tuple[str, ...]
    items: tuple[Item, ...]
    bad: dict[str, str]
    notes: Counter[str]
    files: tuple[pathlib.Path, ...]
    report: tuple[str, ...] = ()


def find(root: pathlib.Path, spec: TilesSpec) -> Found:
    """Find the images below `root` and their labels.

    Raises:
      DataError: no image, no known layout, or labels that do not fit.
      RunError: a folder cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"{printable(root)}: no such folder (data.root)")
    tables = list_tables(root)
    if spec.table or (tables and spec.layout == "table") or (spec.layout == "auto" and any(map(has_paths, tables))):
        return _from_table(root, spec, tables)
    walked = find_files(root, IMAGES)
    images = walked.with_links()
    detected = _detect(root, spec, images)
    if tables and spec.layout == "auto" and not any(detected.values()):
        return _from_table(root, spec, tables)  # says which columns the table lacks
    layout = _layout(root, spec, detected, images, describe(walked.passed_over))
    labels = spec.labels or LIVER_LABELS
    bad: dict[str, str] = {}
    if layout == "masks":
        found = [path for path in images if _mask_folder(path, root) is not None]
        items = [_with_groups(Item(path, mask=masks.mask_of(path)), spec, root) for path in found]
        bad = {name_of(i.path, root): f"no mask {i.path.stem}.png beside it" for i in items if i.mask is None}
        labels = spec.labels or masks.own_labels(root, [item.mask for item in items if item.mask])
    elif layout == "names":
        items, bad = _from_names(root, images, labels, spec)
    else:
        items, bad = _from_folders(root, images, labels, spec)
    items = [item for item in items if name_of(item.path, root) not in bad]
    broken = {pathlib.Path(path): why for path, why in walked.broken.items() if path.lower().endswith(IMAGES)}
    bad |= {name_of(path, root): why for path, why in broken.items()}
    items, notes = usable_sides(sorted(items, key=lambda item: item.path))
    files = (*images, *sorted(broken))
    return Found(layout, labels, tuple(items), bad, notes, files, tuple(walked.report()))


def _from_table(root: pathlib.Path, spec: TilesSpec, tables: Sequence[pathlib.Path]) -> Found:
    """Read the images that a table lists; no other file of the root is looked at."""
    path = choose_table(root, spec.table, tables, "data.tiles.table", has_paths)
    labels = spec.labels or LIVER_LABELS
    items = [_with_groups(Item(**row), spec) for row in table.read(path, labels)]
    missing = {item.path for item in items if not item.path.is_file()}
    bad = {name_of(image, root): "listed in the table, but the file does not exist" for image in missing}
    files = sorted({item.path for item in items} - missing | {path})
    usable = sorted((item for item in items if item.path not in missing), key=lambda item: item.path)
    kept, notes = usable_sides(usable)
    return Found("table", labels, tuple(kept), bad, notes, tuple(files))


def name_of(path: pathlib.Path, root: pathlib.Path) -> str:
    """Return the name of an image below `root`: its path relative to it, as text."""
    return printable(path.relative_to(root) if path.is_relative_to(root) else path)


def _detect(root: pathlib.Path, spec: TilesSpec, images: Sequence[pathlib.Path]) -> dict[str, bool]:
    """Return for each layout whether images below a root without a table may have it, the first choice first."""
    return {
        "table": False,
        "masks": any(_mask_folder(path, root) for path in images),
        "names": any(_VECTOR.search(path.stem) for path in images),
        "folders": any(_folder_labels(path, root, spec.labels or LIVER_LABELS) is not None for path in images),
    }


def _layout(
    root: pathlib.Path, spec: TilesSpec, detected: dict[str, bool], images: Sequence[pathlib.Path], others: str
) -> str:
    """Return the layout of the images below a root without a table.

    Raises:
      DataError: none is known, or it is not the wanted one; `others` describes the files that are no images.
    """
    layout = spec.layout
    if layout == "auto":
        layout = next((name for name, present in detected.items() if present), "")
    if layout and detected[layout]:
        return layout
    names = ", ".join(spec.labels or LIVER_LABELS)
    expected = {
        "table": f"a table ({', '.join(SUFFIXES)}) with the columns path, {names}",
        "names": "images named like name[1 0 0 1].png, with one digit per label",
        "folders": f"images in folders named {names} (data.tiles.labels)",
        "masks": "images in img/ with masks of the same names in mask/",
    }
    wanted = expected[layout] if layout else "; or ".join(expected.values())
    folders = sorted({path.parent.name for path in images})[:8]
    seen = f"{len(images)} images, in the folders {', '.join(map(printable, folders))}" if images else "no image"
    parts = dict.fromkeys(part for path in images for part in path.relative_to(root).parts[:-1])
    hint = _spelt_otherwise(parts, spec.labels or LIVER_LABELS)
    raise DataError(
        f"{printable(root)}: expected {wanted}. Found {seen}; other files: {others}{hint}; "
        "see data_pipelines/liver_tiles/README.md"
    )


def _from_names(
    root: pathlib.Path, images: Sequence[pathlib.Path], labels: Sequence[str], spec: TilesSpec
) -> tuple[list[Item], dict[str, str]]:
    items, bad = [], {}
    for path in images:
        match = _VECTOR.search(path.stem)
        if match is None:
            bad[name_of(path, root)] = f"its name has no labels such as [{' '.join('0' for _ in labels)}]"
            continue
        digits = re.findall("[01]", match[1])
        if len(digits) != len(labels):
            raise DataError(
                f"{path}: {len(digits)} digits in the name, but {len(labels)} labels ({', '.join(labels)}): "
                "set the labels in the order of the digits with --config.data.tiles.labels=\"('a','b')\""
            )
        present = tuple(name for name, digit in zip(labels, digits, strict=True) if digit == "1")
        items.append(_with_groups(Item(path, present), spec, root))
    return items, bad


def _from_folders(
    root: pathlib.Path, images: Sequence[pathlib.Path], labels: Sequence[str], spec: TilesSpec
) -> tuple[list[Item], dict[str, str]]:
    items, bad = [], {}
    for path in images:
        present = _folder_labels(path, root, labels)
        if present is None:
            hint = _spelt_otherwise(path.relative_to(root).parts[:-1], labels)
            bad[name_of(path, root)] = f"none of its folders is named after a label ({', '.join(labels)}){hint}"
        else:
            items.append(_with_groups(Item(path, present), spec, root))
    return items, bad


def _spelt_otherwise(folders: Iterable[str], labels: Sequence[str]) -> str:
    """Return a hint for folders that differ from a label in capitals, spaces, hyphens or underscores; "" for none."""

    def plain(name: str) -> str:
        return re.sub(r"[\W_]+", "", name).casefold()

    spelt = {plain(label): label for label in labels}
    found = {folder: spelt[plain(folder)] for folder in folders if folder not in labels and plain(folder) in spelt}
    words = "; ".join(f"the folder '{printable(folder)}' is not the label '{name}'" for folder, name in found.items())
    return f"; {words}: rename it, or set its spelling with --config.data.tiles.labels" if found else ""


def _folder_labels(path: pathlib.Path, root: pathlib.Path, labels: Sequence[str]) -> tuple[str, ...] | None:
    """Return the labels in the nearest folder's name, such as `tumor` or `tumor+necrosis`; None if there are none."""
    for folder in reversed(path.relative_to(root).parts[:-1]):
        named = set(label_set(folder))
        if named <= set(labels):
            return tuple(name for name in labels if name in named)
    return None


def _mask_folder(path: pathlib.Path, root: pathlib.Path) -> pathlib.Path | None:
    """Return the folder of masks beside the folder of images that holds `path`; None if there is none."""
    if path.parent == root or path.parent.name.lower() not in _IMAGE_FOLDERS:
        return None
    beside = path.parent.parent
    return next((beside / name for name in _MASK_FOLDERS if (beside / name).is_dir()), None)


def _with_groups(item: Item, spec: TilesSpec, root: pathlib.Path | None = None) -> Item:
    """Add what the pattern of the file's name, and below a `root` the names of its folders, say about an item.

    Raises:
      DataError: the name does not match the pattern.
    """
    if root is not None:
        sides = [SIDES.get(part.lower(), "") for part in item.path.relative_to(root).parts[:-1]]
        item = dataclasses.replace(item, given_split=next(filter(None, sides), ""))
    if not spec.group_pattern:
        return item
    match = re.search(spec.group_pattern, item.path.stem)
    if match is None:
        raise DataError(f"{item.path}: its name does not match data.tiles.group_pattern='{spec.group_pattern}'")
    named = match.groupdict()
    return dataclasses.replace(
        item,
        patient_id=item.patient_id or named.get("patient") or "",
        slide_id=item.slide_id or named.get("slide") or "",
    )
