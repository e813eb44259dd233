"""The tile grid of a slide, in level-0 pixels and in µm."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A regular grid of square tiles over a slide; lengths in level-0 pixels.

    Where pixels are not square, a tile has fewer or more of them vertically, and is square in µm up to rounding.

    Attributes:
      width: width of the slide.
      height: height of the slide.
      mpp: width of a level-0 pixel in µm.
      tile: width of a tile.
      stride: horizontal distance between neighbouring tiles; less than `tile` if they overlap.
      stretch: height of a level-0 pixel over its width.
    """

    width: int
    height: int
    mpp: float
    tile: int
    stride: int
    stretch: float = 1.0

    @property
    def mpp_y(self) -> float:
        """The height of a level-0 pixel in µm."""
        return self.mpp * self.stretch

    @property
    def tile_height(self) -> int:
        """The height of a tile."""
        return max(1, round(self.tile / self.stretch))

    @property
    def stride_height(self) -> int:
        """The vertical distance between neighbouring tiles."""
        return max(1, round(self.stride / self.stretch))

    @property
    def offset(self) -> tuple[float, float]:
        """The left and top edge of the first cell: a cell lies in the centre of its tile."""
        return (self.tile - self.stride) / 2, (self.tile_height - self.stride_height) / 2

    @property
    def columns(self) -> int:
        """The number of cells in a row that covers the slide."""
        return math.ceil(self.width / self.stride)

    @property
    def rows(self) -> int:
        """The number of cells in a column that covers the slide."""
        return math.ceil(self.height / self.stride_height)

    @property
    def cell_mm2(self) -> float:
        """The area in mm² that a tile represents: stride × stride, so that overlapping areas count once."""
        return (self.stride * self.mpp / 1000) ** 2 * (self.stride_height * self.stretch / self.stride)
