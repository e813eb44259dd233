"""How a folder or table of images with one class each is read: fields of `config.data.images`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.image_folder import recipes
from histojax.core.printable import printable
from histojax.core.suggestions import did_you_mean

# What a table can say about an image -> the column that says it, unless `columns` names another.
COLUMNS = ("path", "label", "patient_id", "case_id", "slide_id", "site", "magnification", "mpp", "split")
REQUIRED = ("path", "label")
# What a group of `group_pattern` says about an image -> its field.
GROUPS = {
    "patient": "patient_id", "case": "case_id", "slide": "slide_id", "site": "site",
    "magnification": "magnification", "label": "label",
}  # fmt: skip
SIDE_GROUPS = ("train", "val", "test")  # such a group puts each image in whose path it is found on its side
_LAYOUT = ("source", "table", "path_template", "group_pattern")  # fields that a recipe may give
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


@dataclasses.dataclass(frozen=True)
class FolderSpec:
    """How to read the images of a root.

    Attributes:
      recipe: name of a published set, whose numbers of images are checked; empty: none.
      part: whether fewer images than published are fine.
      source: name of a registered source of one's own; empty: the images are files.
      table: file name of the table below the root, needed only if there are several; of a source, the file to read.
      path_template: path of each image below the table's folder, with the table's columns in braces, such as
        `images/{Image Name}`; empty: the column `path`.
      group_pattern: regular expression on an image's path below the root, with some of the named groups `GROUPS` and
        `SIDE_GROUPS`; empty: none.
      columns: pairs of what a column says (one of `COLUMNS`) and its name in the table, where they differ.

    Raises:
      DataError: a field has an illegal value.
    """

    recipe: str = ""
    part: bool = False
    source: str = ""
    table: str = ""
    path_template: str = ""
    group_pattern: str = ""
    columns: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if unknown := [name for name, _ in self.columns if name not in COLUMNS]:
            raise DataError(f"data.images.columns.{unknown[0]}: unknown; known are {', '.join(COLUMNS)}")
        if self.part and not self.recipe:
            raise DataError("data.images.part has an effect only with data.images.recipe: drop it, or name the set")
        if self.path_template and not _PLACEHOLDER.search(self.path_template):
            raise DataError(
                f"data.images.path_template='{self.path_template}' names no column in braces; write it such as "
                "'images/{name}.png'"
            )
        if not self.group_pattern:
            return
        try:
            named = set(re.compile(self.group_pattern).groupindex)
        except re.error as error:
            raise DataError(
                f"data.images.group_pattern='{self.group_pattern}' is not a regular expression: {error}"
            ) from None
        known = (*GROUPS, *SIDE_GROUPS)
        if not named or not named <= set(known):
            raise DataError(
                f"data.images.group_pattern='{self.group_pattern}' must name some of the groups "
                f"{', '.join(f'(?P<{name}>…)' for name in known)}, and no other"
            )

    @property
    def required(self) -> tuple[str, ...]:
        """The columns, as in `COLUMNS`, that a table needs."""
        return ("label",) if self.path_template else REQUIRED

    @property
    def labels_from_paths(self) -> bool:
        """Whether the pattern finds the classes of images that no table lists."""
        return bool(self.group_pattern) and "label" in re.compile(self.group_pattern).groupindex

    def column(self, name: str) -> str:
        """Return the name that a column has in the table."""
        return dict(self.columns).get(name) or name

    def path_cell(self, place: str, row: Mapping[str, str]) -> str:
        """Return the path that the template gives an image, from the cells of its row.

        Raises:
          DataError: the template names a column that the table lacks, or whose cell is empty.
        """
        by_name = {name.lower(): name for name in row}

        def cell(found: re.Match[str]) -> str:
            name = by_name.get(found[1].lower())
            if name is None:
                raise DataError(
                    f"{place}: data.images.path_template='{self.path_template}' names the column {found[1]}"
                    f"{did_you_mean(found[1], row)}, but the table has {printable(', '.join(row))}"
                )
            if not row[name]:
                raise DataError(f"{place}, column {name}: empty; fill it in, or remove the row")
            return row[name]

        return _PLACEHOLDER.sub(cell, self.path_template)


def folder_spec(fields: Mapping[str, Any]) -> FolderSpec:
    """Build the spec from `config.data.images`. A recipe gives the fields that are not set.

    Raises:
      DataError: there is no such recipe, or a field has an illegal value.
    """
    layout = recipes.find(fields["recipe"]).fields if fields["recipe"] else {}
    columns = {name: text for name, text in fields["columns"].items() if text and text != name}
    return FolderSpec(
        recipe=fields["recipe"],
        part=fields["part"],
        **{name: fields[name] or layout.get(name, "") for name in _LAYOUT},
        columns=tuple((layout.get("columns", {}) | columns).items()),
    )


def positive_class(fields: Mapping[str, Any]) -> str:
    """Return the positive one of two classes by `config.data.images`, else by its recipe; empty: neither names one.

    Raises:
      DataError: there is no such recipe.
    """
    by_recipe = recipes.find(fields["recipe"]).positive if fields["recipe"] else ""
    return str(fields["positive"] or by_recipe)
