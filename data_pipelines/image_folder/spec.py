"""How a folder or table of images with one class each is read: fields of `config.data.images`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from data_pipelines.errors import DataError

# What a table can say about an image -> the column that says it, unless `columns` names another.
COLUMNS = ("path", "label", "patient_id", "case_id", "slide_id", "site", "magnification", "split")
REQUIRED = ("path", "label")
GROUPS = {"patient": "patient_id", "case": "case_id", "slide": "slide_id", "site": "site"}


@dataclasses.dataclass(frozen=True)
class FolderSpec:
    """How to read the images of a root.

    Attributes:
      source: name of a registered source of one's own; empty: the images are files.
      table: file name of the table below the root, needed only if there are several; of a source, the file to read.
      group_pattern: regular expression on an image's path below the root, with the named groups `patient`, `case`,
        `slide` or `site`; empty: none.
      columns: pairs of what a column says (one of `COLUMNS`) and its name in the table, where they differ.

    Raises:
      DataError: a field has an illegal value.
    """

    source: str = ""
    table: str = ""
    group_pattern: str = ""
    columns: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if unknown := [name for name, _ in self.columns if name not in COLUMNS]:
            raise DataError(f"data.images.columns.{unknown[0]}: unknown; known are {', '.join(COLUMNS)}")
        if not self.group_pattern:
            return
        try:
            named = set(re.compile(self.group_pattern).groupindex)
        except re.error as error:
            raise DataError(
                f"data.images.group_pattern='{self.group_pattern}' is not a regular expression: {error}"
            ) from None
        if not named or not named <= GROUPS.keys():
            raise DataError(
                f"data.images.group_pattern='{self.group_pattern}' must name some of the groups "
                f"{', '.join(f'(?P<{name}>…)' for name in GROUPS)}, and no other"
            )

    def column(self, name: str) -> str:
        """Return the name that a column has in the table."""
        return dict(self.columns).get(name) or name


def folder_spec(fields: Mapping[str, Any]) -> FolderSpec:
    """Build the spec from `config.data.images`.

    Raises:
      DataError: a field has an illegal value.
    """
    columns = tuple((name, text) for name, text in fields["columns"].items() if text and text != name)
    return FolderSpec(fields["source"], fields["table"], fields["group_pattern"], columns)
