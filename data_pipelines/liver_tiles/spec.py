"""How a folder of tiles is read: the fields of `config.data.tiles`."""

import dataclasses
import re

from data_pipelines.errors import DataError

LIVER_LABELS = ("interstitial", "necrosis", "non_tumor", "tumor")  # arXiv 2308.10446
LAYOUTS = ("auto", "table", "names", "folders", "masks")
_GROUPS = ("patient", "slide")


@dataclasses.dataclass(frozen=True)
class TilesSpec:
    """How to read the tiles of a root.

    Attributes:
      labels: names in the order of the model's outputs; empty: tumor, stroma and normal for masks with WSSS4LUAD's
        palette, and `LIVER_LABELS` for everything else.
      layout: one of `LAYOUTS`; `auto`: detect it.
      table: file name of the table below the root; needed only if there are several.
      group_pattern: regular expression on file names without suffix, with the named groups `patient`, `slide` or
        both; empty: none.
      size: side of a tile that is cut from an image with a mask, in pixels.
      stride: distance between tiles in pixels; 0: `size`.
      min_share: fraction of a tile, in (0, 1], that a class must cover to be one of its labels.
      mask_values: value of each label in the masks; empty: 0, 1, 2 … in the order of the labels.
      keep_empty: keep tiles without a label that are cut from masks; images that a table, a name or a folder lists
        without a label are always kept.

    Raises:
      DataError: a field has an illegal value.
    """

    labels: tuple[str, ...] = ()
    layout: str = "auto"
    table: str = ""
    group_pattern: str = ""
    size: int = 224
    stride: int = 0
    min_share: float = 0.05
    mask_values: tuple[int, ...] = ()
    keep_empty: bool = False

    def __post_init__(self) -> None:
        def require(ok: bool, message: str) -> None:
            if not ok:
                raise DataError(f"data.tiles.{message}")

        # A spec read from JSON has lists; as tuples it stays hashable and equal to one written in Python.
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "mask_values", tuple(self.mask_values))
        for name in self.labels:
            # "+" joins labels, and other characters would not survive a table or a folder's name.
            plain = isinstance(name, str) and re.fullmatch(r"\w[\w .-]*", name) and name == name.strip()
            require(bool(plain), f"labels: '{name}' is not a plain name (letters, digits, _, -, . and inner spaces)")
        require(len(set(self.labels)) == len(self.labels), f"labels={self.labels}: a name is repeated")
        require(self.layout in LAYOUTS, f"layout='{self.layout}' is not one of {', '.join(LAYOUTS)}")
        require(
            not self.table or self.layout in ("auto", "table"),
            f"table='{self.table}' cannot be combined with layout={self.layout}",
        )
        require(self.size >= 1, f"size={self.size} must be at least 1")
        require(self.stride >= 0, f"stride={self.stride} must not be negative")
        require(0 < self.min_share <= 1, f"min_share={self.min_share} is not in (0, 1]")
        require(
            all(isinstance(value, int) and 0 <= value <= 255 for value in self.mask_values),
            f"mask_values={self.mask_values} are not all integers in 0 … 255",
        )
        require(
            len(set(self.mask_values)) == len(self.mask_values), f"mask_values={self.mask_values}: a value is repeated"
        )
        require(
            not (self.labels and self.mask_values) or len(self.labels) == len(self.mask_values),
            f"mask_values={self.mask_values} has {len(self.mask_values)} values for {len(self.labels)} labels",
        )
        if self.group_pattern:
            try:
                named = set(re.compile(self.group_pattern).groupindex)
            except re.error as error:
                raise DataError(
                    f"data.tiles.group_pattern='{self.group_pattern}' is not a regular expression: {error}"
                ) from None
            require(
                bool(named) and named <= set(_GROUPS),
                f"group_pattern='{self.group_pattern}' must name the groups (?P<patient>…), (?P<slide>…) or both, "
                f"and no other",
            )
