"""A seeded generator of H&E-like images in the folders and under the file names of BreakHis."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from data_pipelines.breakhis.filenames import SUBTYPE_NAMES, SUBTYPES
from data_pipelines.synthetic import morphology, stain
from data_pipelines.synthetic.publish import publish, write_png

VERSION = 1  # raise it whenever a pixel of any image changes
_BENIGN = frozenset(SUBTYPES[:4])
_SCALE = {"40X": 0.4, "100X": 1.0, "200X": 2.0, "400X": 4.0}


@dataclasses.dataclass(frozen=True)
class SyntheticSpec:
    """What to generate. Every eighth case has two slide folders, which are two patients in the sense of BreakHis.

    Attributes:
      seed: not negative.
      cases_per_subtype: number of cases of A, F, PT, TA, DC, LC, MC, PC.
      images_per_patient: images per patient and magnification.
      magnifications: some of 40X, 100X, 200X, 400X.
      height: pixels; BreakHis has 460.
      width: pixels; BreakHis has 700.

    Raises:
      ValueError: a field has an illegal value.
    """

    seed: int = 0
    cases_per_subtype: tuple[int, ...] = (3, 5, 2, 4, 14, 4, 5, 4)
    images_per_patient: int = 6
    magnifications: tuple[str, ...] = ("40X", "100X", "200X", "400X")
    height: int = 115
    width: int = 175

    def __post_init__(self) -> None:
        # A spec read from JSON has lists; as tuples it stays hashable and equal to one written in Python.
        object.__setattr__(self, "cases_per_subtype", tuple(self.cases_per_subtype))
        object.__setattr__(self, "magnifications", tuple(self.magnifications))
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")
        if len(self.cases_per_subtype) != len(SUBTYPES) or min(self.cases_per_subtype) < 0:
            raise ValueError(f"cases_per_subtype is {self.cases_per_subtype}; give one count for each of {SUBTYPES}")
        if not 0 < sum(self.cases_per_subtype) < 10_000:
            raise ValueError(f"cases_per_subtype adds up to {sum(self.cases_per_subtype)}; it must be 1 to 9999")
        if not 1 <= self.images_per_patient <= 999:
            raise ValueError(f"images_per_patient is {self.images_per_patient}; names allow 1 to 999")
        wrong = [m for m in self.magnifications if m not in _SCALE]
        if wrong or not self.magnifications or len(set(self.magnifications)) < len(self.magnifications):
            raise ValueError(f"magnifications are {self.magnifications}; choose from {tuple(_SCALE)}, each once")
        if min(self.height, self.width) < 32 or max(self.height, self.width) > 4096:
            raise ValueError(f"height x width is {self.height}x{self.width}; each must be 32 to 4096")


@dataclasses.dataclass(frozen=True)
class _Slide:
    code: str
    digits: int  # number of the case
    suffix: str  # suffix of the slide folder
    part: int

    @property
    def label(self) -> str:
        return "B" if self.code in _BENIGN else "M"

    def path(self, magnification: str, number: int) -> pathlib.PurePosixPath:
        """Return an image's path below the root, as published: `_` before the folder's year, `-` before the file's."""
        tumor = "benign" if self.label == "B" else "malignant"
        head, tail = f"SOB_{self.label}_{self.code}", f"14-{self.digits}{self.suffix}"
        return pathlib.PurePosixPath(
            "BreaKHis_v1/histology_slides/breast",
            tumor,
            "SOB",
            SUBTYPE_NAMES[self.code],
            f"{head}_{tail}",
            magnification,
            f"{head}-{tail}-{magnification.removesuffix('X')}-{number:03d}.png",
        )


def _slides(spec: SyntheticSpec) -> Iterator[_Slide]:
    codes = itertools.chain.from_iterable(
        itertools.repeat(code, n) for code, n in zip(SUBTYPES, spec.cases_per_subtype, strict=True)
    )
    for digits, code in enumerate(codes, start=90001):
        suffixes = ("SYNA", "SYNB") if digits % 8 == 3 else ("SYN",)
        for part, suffix in enumerate(suffixes):
            yield _Slide(code, digits, suffix, part)


def _rng(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _render(spec: SyntheticSpec, slide: _Slide, magnification: str, number: int) -> npt.NDArray[np.uint8]:
    """Render one image, RGB uint8 (height, width, 3); it depends on nothing but the arguments."""
    # Two slides of a case share stain and grade, so a split by slide leaks here as it does in BreakHis.
    case = _rng(spec.seed, slide.digits)
    look = stain.draw_look(case)
    grade = case.uniform(0.0, 0.38) if slide.code in _BENIGN else case.uniform(0.42, 1.0)
    rng = _rng(spec.seed, slide.digits, slide.part, int(magnification.removesuffix("X")), number)
    zoom = spec.width / 175.0
    grade = grade + rng.normal(0.0, 0.08)
    habit = morphology.HABITS[slide.code]
    tissue = morphology.draw_tissue(rng, habit, grade, spec.height, spec.width, _SCALE[magnification] * zoom)
    look = stain.vary(look, rng)
    # The lens blurs before the calibration, not after: small nuclei lose more contrast by blurring, which would reveal
    # the class.
    maps = (tissue.hematoxylin, tissue.eosin, tissue.tissue)
    hematoxylin, eosin, cover = (cv2.GaussianBlur(x, (0, 0), look.blur * zoom) for x in maps)
    density = stain.calibrate(hematoxylin, eosin, cover, look, rng)
    return stain.develop(density, cover, look, rng)


def _write(folder: pathlib.Path, spec: SyntheticSpec, slide: _Slide, magnification: str, number: int) -> None:
    write_png(folder / slide.path(magnification, number), _render(spec, slide, magnification, number))


def generate(root: str | os.PathLike[str], spec: SyntheticSpec = SyntheticSpec()) -> pathlib.Path:
    """Generate the dataset atomically in `root`; do nothing if it already exists there.

    Returns:
      `root`.

    Raises:
      ValueError: `root` holds anything else.
    """
    jobs = [
        (slide, magnification, number)
        for slide in _slides(spec)
        for magnification in spec.magnifications
        for number in range(1, spec.images_per_patient + 1)
    ]
    marker = {"generator": "histojax data_pipelines.synthetic", "version": VERSION, **dataclasses.asdict(spec)}
    return publish(pathlib.Path(root), marker, jobs, lambda folder, job: _write(folder, spec, *job))
