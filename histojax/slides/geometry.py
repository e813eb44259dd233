"""The tile grid of a slide, in level-0 pixels and in µm."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A regular grid of square tiles over a slide; lengths in level-0 pixels.

    Attributes:
      width: width of the slide.
      height: height of the slide.
      mpp: µm per level-0 pixel.
      tile: side of a tile.
      stride: distance between neighbouring tiles; less than `tile` if they overlap.
    """

    width: int
    height: int
    mpp: float
    tile: int
    stride: int

    @property
    def cell_mm2(self) -> float:
        """The area in mm² that a tile represents: stride × stride, so that overlapping areas count once."""
        return (self.stride * self.mpp / 1000) ** 2
