"""A seeded generator of H&E-like tiles with some of the four liver labels, and their table."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from data_pipelines.liver_tiles.spec import LIVER_LABELS
from data_pipelines.synthetic import morphology, stain
from data_pipelines.synthetic.morphology import Habit, Tissue
from data_pipelines.synthetic.publish import publish, write_png

VERSION = 1  # raise it whenever a pixel of any tile changes
MIN_SHARE = 0.05  # fraction of a tile that a tissue must cover to be one of its labels
TABLE = "tiles.csv"

# The tissues are caricatures: fibres with spindle cells, plates of even cells with round nuclei, ragged nests of
# uneven ones. Necrosis is drawn as tumor and then decays.
_HABITS = {
    "interstitial": Habit(stroma=1.0),
    "necrosis": Habit(nest=1.0, gap=1.0, stroma=0.1),
    "non_tumor": Habit(cord=1.0, stroma=0.1),
    "tumor": Habit(nest=0.7, gland=0.3, gap=2.0, stroma=0.1),
}
_GRADES = {"interstitial": (0.0, 0.2), "necrosis": (0.5, 0.9), "non_tumor": (0.0, 0.15), "tumor": (0.6, 1.0)}
_FREQUENCY = np.array([1.0, 0.5, 1.0, 1.2])  # relative frequency of the tissues, in the order of the labels


@dataclasses.dataclass(frozen=True)
class TilesSyntheticSpec:
    """What to generate.

    Attributes:
      seed: not negative.
      patients: number of patients; every fourth has two slides.
      tiles_per_slide: tiles per slide.
      size: side of a tile in pixels.

    Raises:
      ValueError: a field has an illegal value.
    """

    seed: int = 0
    patients: int = 24
    tiles_per_slide: int = 14
    size: int = 112

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")
        if not 1 <= self.patients <= 999 or not 1 <= self.tiles_per_slide <= 999:
            raise ValueError(
                f"{self.patients} patients with {self.tiles_per_slide} tiles per slide; each must be 1 to 999"
            )
        if not 32 <= self.size <= 1024:
            raise ValueError(f"size is {self.size}; it must be 32 to 1024")


@dataclasses.dataclass(frozen=True)
class _Tile:
    patient: int
    slide: int
    number: int

    @property
    def patient_id(self) -> str:
        return f"SYN-P{self.patient:03d}"

    @property
    def slide_id(self) -> str:
        return f"{self.patient_id}-{'AB'[self.slide]}"

    @property
    def path(self) -> str:
        return f"tiles/{self.slide_id}_{self.number:03d}.png"


def _tiles(spec: TilesSyntheticSpec) -> Iterator[_Tile]:
    for patient in range(1, spec.patients + 1):
        for slide in range(2 if patient % 4 == 0 else 1):
            for number in range(1, spec.tiles_per_slide + 1):
                yield _Tile(patient, slide, number)


def _rng(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((0x711E5, *key))))


def _regions(rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    """Draw the fraction of each tissue per pixel, (4, size, size), summing to 1: one to three, soft borders."""
    present = rng.choice(
        4, size=rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]), replace=False, p=_FREQUENCY / _FREQUENCY.sum()
    )
    field = np.full((4, size, size), -np.inf)
    for index in present:
        field[index] = morphology.smooth_noise(rng, size, size, cell=size / 2.5)
    shares = np.stack([field.argmax(0) == index for index in range(4)]).astype(np.float64)
    soft = np.stack([cv2.GaussianBlur(share, (0, 0), 0.01 * size) for share in shares])
    return soft / soft.sum(0)


def _render(spec: TilesSyntheticSpec, tile: _Tile) -> tuple[npt.NDArray[np.uint8], tuple[bool, ...]]:
    """Render a tile, RGB uint8 (size, size, 3), and its labels; both depend on nothing but the arguments."""
    look = stain.draw_look(_rng(spec.seed, tile.patient))
    rng = _rng(spec.seed, tile.patient, tile.slide, tile.number)
    shares = _regions(rng, spec.size)
    present = tuple(bool(share.mean() >= MIN_SHARE) for share in shares)
    return draw(rng, look, shares), present


def draw(rng: np.random.Generator, look: stain.Look, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Draw a square field of view, RGB uint8 (size, size, 3).

    Args:
      rng: draws everything random.
      look: stain and scanner.
      shares: fraction of each of LIVER_LABELS per pixel, (4, size, size).
    """
    size = shares.shape[-1]
    scale = size / 112
    maps = np.zeros((3, size, size))
    for share, name in zip(shares, LIVER_LABELS, strict=True):
        if share.max() > 0:
            grade = rng.uniform(*_GRADES[name])
            tissue = morphology.draw_tissue(rng, _HABITS[name], grade, size, size, scale)
            if name == "necrosis":
                tissue = _decayed(rng, tissue, scale)
            maps += share * np.stack([tissue.hematoxylin, tissue.eosin, tissue.tissue])
    look = stain.vary(look, rng)
    hematoxylin, eosin, cover = (cv2.GaussianBlur(x, (0, 0), look.blur * scale) for x in maps)
    density = stain.calibrate(hematoxylin, eosin, cover, look, rng)
    return stain.develop(density, cover, look, rng)


def _decayed(rng: np.random.Generator, tissue: Tissue, scale: float) -> Tissue:
    """Turn cells into dead ones: faded, smeared nuclei, and a coarse pink mass with dust of nuclear debris."""
    height, width = tissue.eosin.shape
    dust = (morphology.grain_noise(rng, height, width, 0.9 * scale) > 2.2).astype(np.float64)
    ghosts = cv2.GaussianBlur(tissue.hematoxylin, (0, 0), 3.0 * scale)
    mass = 0.62 + 0.16 * morphology.grain_noise(rng, height, width, 2.2 * scale)
    hematoxylin = 0.35 * ghosts + 0.8 * cv2.GaussianBlur(dust, (0, 0), 0.6 * scale)
    return Tissue(hematoxylin, np.clip(mass, 0.1, None), np.clip(tissue.tissue + 0.5, 0.0, 1.0))


def generate_tiles(root: str | os.PathLike[str], spec: TilesSyntheticSpec = TilesSyntheticSpec()) -> pathlib.Path:
    """Generate the tiles and their table atomically in `root`; do nothing if they already exist there.

    Returns:
      `root`.

    Raises:
      ValueError: `root` holds anything else.
    """
    tiles = list(_tiles(spec))
    labels: dict[_Tile, tuple[bool, ...]] = {}

    def write(folder: pathlib.Path, tile: _Tile) -> None:
        image, labels[tile] = _render(spec, tile)
        write_png(folder / tile.path, image)

    facts = {"generator": "histojax data_pipelines.synthetic.tiles", "version": VERSION, **dataclasses.asdict(spec)}
    return publish(pathlib.Path(root), facts, tiles, write, finish=lambda folder: _write_table(folder, tiles, labels))


def _write_table(folder: pathlib.Path, tiles: list[_Tile], labels: dict[_Tile, tuple[bool, ...]]) -> None:
    with open(folder / TABLE, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *LIVER_LABELS, "patient_id", "slide_id"])
        for tile in tiles:
            writer.writerow([tile.path, *map(int, labels[tile]), tile.patient_id, tile.slide_id])
