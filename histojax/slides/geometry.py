"""Where the tiles of a slide lie, in level-0 pixels and in µm."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A regular grid of square tiles over a slide; lengths in level-0 pixels.

    Attributes:
      width: of the slide.
      height: of the slide.
      mpp: µm per level-0 pixel.
      tile: side of a tile.
      stride: from a tile to its neighbour; with overlap less than `tile`.
    """

    width: int
    height: int
    mpp: float
    tile: int
    stride: int

    @property
    def cell_mm2(self) -> float:
        """The area in mm² that a tile stands for: a square of stride × stride, so that overlap counts once."""
        return (self.stride * self.mpp / 1000) ** 2
