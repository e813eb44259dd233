"""Shapes of the synthetic tissue: stroma, glands, nests, cords, pools and fingers, as two stain density maps.

Lengths are in pixels of an image 175 pixels wide at 100X; `scale` converts them. The class determines two
things: which structures are built, and `grade` in 0..1, which nuclear size, its spread, raggedness and disorder
follow. The white and nuclear fractions of an image are drawn before the class is considered.
"""

import dataclasses

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.uint8]

_SHIFT = 4  # sub-pixel bits of cv2's polygon drawing
_TURN = np.linspace(0.0, 2 * np.pi, 18, endpoint=False)  # directions of a nucleus's corners
_WAVES = np.array([2.0, 3.0, 4.0])[None, :, None]


@dataclasses.dataclass(frozen=True)
class Habit:
    """The structures of a subtype: their frequencies, gland size and shape, fraction of stromal nuclei."""

    gland: float = 0.0
    nest: float = 0.0
    cord: float = 0.0
    finger: float = 0.0
    pool: bool = False
    radius: tuple[float, float] = (16.0, 28.0)
    aspect: tuple[float, float] = (0.7, 1.0)
    gap: float = 4.0
    stroma: float = 0.25  # fraction of the nuclear area that is stromal


HABITS = {
    "A": Habit(gland=1.0, radius=(15.0, 23.0), gap=3.0),
    "F": Habit(gland=1.0, radius=(28.0, 46.0), aspect=(0.3, 0.5), gap=6.0, stroma=0.35),
    "PT": Habit(gland=1.0, radius=(26.0, 42.0), aspect=(0.4, 0.8), gap=9.0, stroma=0.5),
    "TA": Habit(gland=1.0, radius=(12.0, 16.0), aspect=(0.8, 1.0), gap=1.5, stroma=0.15),
    "DC": Habit(gland=0.15, nest=0.6, cord=0.25),
    "LC": Habit(gland=0.05, nest=0.15, cord=0.8, stroma=0.35),
    "MC": Habit(nest=1.0, pool=True, gap=9.0),
    "PC": Habit(gland=0.1, nest=0.25, finger=0.65),
}


@dataclasses.dataclass(frozen=True)
class Tissue:
    """Raw densities (h, w) on any scale, and the fraction of tissue in each pixel (h, w), from 0 (clear) to 1."""

    hematoxylin: Array
    eosin: Array
    tissue: Array


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Array:
    """Draw smooth noise (h, w) with a standard deviation of about 1 and a correlation length of `cell` pixels."""
    rows, cols = int(height / cell) + 3, int(width / cell) + 3

    table = rng.normal(size=(rows, cols))
    for n in (height, width):  # rows first, then columns, each by smooth interpolation between knots
        at = np.arange(n) / cell
        whole = np.floor(at).astype(int)
        part = (at - whole)[:, None]
        part = part * part * (3.0 - 2.0 * part)
        table = (table[whole] * (1.0 - part) + table[whole + 1] * part).T
    return 1.5 * table


def grain_noise(rng: np.random.Generator, height: int, width: int, sigma: float) -> Array:
    """Draw blurred white noise (h, w): slower than `smooth_noise`, but without a visible lattice at fine scales."""
    return cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), sigma) * (2 * np.sqrt(np.pi) * sigma)


def _outline(rng: np.random.Generator, a: float, b: float, angle: float, wobble: float, n: int = 48) -> Array:
    """Draw a closed curve (n, 2) around the origin: an ellipse whose radius varies by about `wobble`."""
    t = np.linspace(0.0, 2 * np.pi, n, endpoint=False)
    waves = np.arange(2, 7)[:, None]
    swing = rng.normal(size=(5, 1)) / waves * np.cos(waves * t + rng.uniform(0, 2 * np.pi, (5, 1)))
    r = np.clip(1.0 + 1.6 * wobble * swing.sum(axis=0), 0.35, 1.8)
    x, y = a * r * np.cos(t), b * r * np.sin(t)
    return np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=1)


def _along(curve: Array, spacing: float, closed: bool) -> tuple[Array, Array]:
    """Return points (n, 2) on a curve, about `spacing` apart, and the curve's directions there (n,), in radians."""
    if closed:
        curve = np.concatenate([curve, curve[:1]])
    step = np.diff(curve, axis=0)
    length = np.concatenate([[0.0], np.cumsum(np.sqrt((step**2).sum(axis=1)))])
    n = max(int(length[-1] / spacing), 2)
    at = (np.arange(n) + 0.5) * length[-1] / n
    points = np.stack([np.interp(at, length, curve[:, 0]), np.interp(at, length, curve[:, 1])], axis=1)
    segment = np.clip(np.searchsorted(length, at) - 1, 0, len(step) - 1)
    return points, np.arctan2(step[segment, 1], step[segment, 0])


class _Field:
    """A field of view while it is drawn; layers are 8-bit coverages."""

    def __init__(self, rng: np.random.Generator, habit: Habit, grade: float, height: int, width: int, scale: float):
        self.rng, self.habit, self.grade, self.scale = rng, habit, grade, scale
        self.size = np.array([width, height]) / scale
        self.nuclei, self.epithelium, self.clear, self.pool = (np.zeros((height, width), np.uint8) for _ in range(4))
        self.fibre = float(rng.uniform(0, np.pi))
        self.placed: list[tuple[float, float, float]] = []  # x, y, radius
        self.half = 3.0 + 2.6 * grade  # half the long axis of an epithelial nucleus

    def _fill(self, layer: Mask, curve: Array, value: int) -> None:
        points = np.rint(curve * (self.scale * (1 << _SHIFT))).astype(np.int32)
        cv2.fillPoly(layer, [points], value, lineType=cv2.LINE_AA, shift=_SHIFT)

    def _stroke(self, layer: Mask, curve: Array, breadth: float, value: int) -> None:
        points = np.rint(curve * (self.scale * (1 << _SHIFT))).astype(np.int32)
        thickness = max(round(breadth * self.scale), 1)
        cv2.polylines(layer, [points], False, value, thickness, cv2.LINE_AA, _SHIFT)

    def place(self, radius: float, gap: float) -> Array | None:
        """Find a free centre for a circle, or None; the first circle is placed so that its rim is visible."""
        for _ in range(12):
            if self.placed:
                at = self.rng.uniform(-0.8 * radius, self.size + 0.8 * radius)
            else:
                turn = self.rng.uniform(0, 2 * np.pi)
                away = radius * self.rng.uniform(0.2, 0.9)
                at = self.size / 2 + away * np.array([np.cos(turn), np.sin(turn)])
            x, y, r = np.array(self.placed).reshape(-1, 3).T
            if ((at[0] - x) ** 2 + (at[1] - y) ** 2 > (radius + r + gap) ** 2).all():
                self.placed.append((at[0], at[1], radius))
                return at
        return None

    def stamp(self, centres: Array, half: Array, aspect: Array, angle: Array, ragged: float) -> None:
        """Draw n nuclei: centres (n, 2), half-axes, aspects and angles (n,)."""
        rng = self.rng
        seen = ((centres > -half[:, None]) & (centres < self.size + half[:, None])).all(axis=1)
        centres, half, aspect, angle = centres[seen], half[seen], aspect[seen], angle[seen]
        n = len(centres)
        phase = rng.uniform(0, 2 * np.pi, (n, 3, 1))
        swing = rng.normal(0, ragged, (n, 3, 1)) * np.cos(_WAVES * _TURN + phase)
        r = half[:, None] * np.clip(1 + swing.sum(axis=1), 0.5, 1.6)
        x, y = r * np.cos(_TURN), r * aspect[:, None] * np.sin(_TURN)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        unit = self.scale * (1 << _SHIFT)
        curves = unit * np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1)
        whole, inner, core = (
            np.rint(unit * centres[:, None] + share * curves).astype(np.int32) for share in (1.0, 0.72, 0.22)
        )
        dark = rng.integers(165, 246, n).tolist()
        # Vesicular nuclei have a rim and a nucleolus; if these would be smaller than a pixel, all nuclei are plain.
        pale = (rng.uniform(size=n) < 0.45) & (half * self.scale > 2.5)
        for i in range(n):
            cv2.fillConvexPoly(self.nuclei, whole[i], dark[i], cv2.LINE_AA, _SHIFT)
            if pale[i]:
                cv2.fillConvexPoly(self.nuclei, inner[i], dark[i] - 60, cv2.LINE_AA, _SHIFT)
                cv2.fillConvexPoly(self.nuclei, core[i], 255, cv2.LINE_AA, _SHIFT)

    def _epithelial(self, centres: Array, angle: Array, aspect: float) -> None:
        """Draw nuclei of the lesion; the grade sets size, spread, raggedness and disorder."""
        g, n, rng = self.grade, len(centres), self.rng
        half = self.half * np.exp(rng.normal(0, 0.04 + 0.24 * g, n))
        turn = angle + rng.normal(0, 0.08 + 1.2 * g, n)
        shift = rng.normal(0, 0.25 + 1.1 * g, (n, 2))
        shapes = np.clip(rng.normal(aspect, 0.03 + 0.12 * g, n), 0.45, 1.0)
        self.stamp(centres + shift, half, shapes, turn, 0.015 + 0.10 * g)

    def gland(self) -> bool:
        """Draw a duct or tubule: two orderly rows of nuclei around a lumen; high grades distort it."""
        rng, g = self.rng, self.grade
        a = rng.uniform(*self.habit.radius)
        b = max(a * rng.uniform(*self.habit.aspect), 2.2 * self.half)
        at = self.place((a + b) / 2, self.habit.gap)
        if at is None:
            return False
        shape = _outline(rng, a, b, rng.normal(self.fibre, 0.5), 0.06 + 0.35 * g)
        reach = np.sqrt((shape**2).sum(axis=1, keepdims=True))
        wall = 2.5 * self.half
        self._fill(self.clear, at + shape, 0)
        self._fill(self.epithelium, at + shape, 255)
        self._fill(self.clear, at + shape * np.clip(1 - wall / reach, 0.15, 1.0), 255)
        for depth, aspect in ((0.25, 0.5), (0.65, 0.66)):
            curve = at + shape * np.clip(1 - depth * wall / reach, 0.2, 1.0)
            points, along = _along(curve, 2.3 * self.half * (0.95 if depth < 0.5 else 0.72), closed=True)
            keep = rng.uniform(size=len(points)) > 0.03 + 0.3 * g
            self._epithelial(points[keep], along[keep] + (0.0 if depth < 0.5 else np.pi / 2), aspect)
        return True

    def nest(self) -> bool:
        """Draw a solid, ragged cluster without a lumen; in mucin it floats in a pool."""
        rng = self.rng
        a = rng.uniform(14, 28) * (0.75 if self.habit.pool else 1.0)
        b = a * rng.uniform(0.5, 0.95)
        at = self.place((a + b) / 2, self.habit.gap if self.habit.pool else 1.0)
        if at is None:
            return False
        shape = _outline(rng, a, b, rng.uniform(0, np.pi), 0.3)
        if self.habit.pool:
            self._fill(self.pool, at + 1.55 * shape, 255)
        self._fill(self.clear, at + shape, 0)
        self._fill(self.epithelium, at + shape, 255)
        pitch = 2.15 * self.half
        n = int(1.8 * a / pitch) + 2
        row, col = np.mgrid[-n : n + 1, -n : n + 1]
        grid = np.stack([(col + 0.5 * (row % 2)) * pitch, row * 0.87 * pitch], axis=-1).reshape(-1, 2)
        grid = grid + rng.normal(0, 0.2 * pitch, grid.shape)
        # The outline is star-shaped around the centre, so the radius by direction decides what is inside.
        direction = np.arctan2(shape[:, 1], shape[:, 0])
        reach = np.sqrt((shape**2).sum(axis=1))
        limit = np.interp(np.arctan2(grid[:, 1], grid[:, 0]), direction, reach, period=2 * np.pi)
        inside = np.sqrt((grid**2).sum(axis=1)) < limit - 0.5 * self.half
        inside &= rng.uniform(size=len(grid)) > 0.08
        self._epithelial(at + grid[inside], rng.uniform(0, np.pi, int(inside.sum())), 0.78)
        return True

    def _path(self, start: Array, heading: float, length: float, bend: float) -> Array:
        steps = max(int(length / 3), 3)
        turn = heading + np.cumsum(self.rng.normal(0, bend, steps))
        walk = np.cumsum(3.0 * np.stack([np.cos(turn), np.sin(turn)], axis=1), axis=0)
        return start + walk - walk[steps // 2]

    def cord(self) -> bool:
        """Draw cells in single file between the fibres: one row in lobular carcinoma, up to three elsewhere."""
        rng = self.rng
        start = rng.uniform(0, self.size) if self.placed else self.size / 2
        self.placed.append((start[0], start[1], 3.0))
        path = self._path(start, self.fibre + rng.normal(0, 0.35), rng.uniform(40, 110), 0.12)
        rows = 1 if self.habit.cord > 0.5 else int(rng.integers(1, 4))
        self._stroke(self.clear, path, 2.4 * self.half * rows, 0)
        self._stroke(self.epithelium, path, 2.2 * self.half * rows, 255)
        points, along = _along(path, 2.2 * self.half, closed=False)
        side = np.stack([-np.sin(along), np.cos(along)], axis=1)
        for k in range(rows):
            self._epithelial(points + side * (k - (rows - 1) / 2) * 1.9 * self.half, along, 0.75)
        return True

    def finger(self) -> bool:
        """Draw a papilla: a stromal core between two rows of nuclei, in a clear space."""
        rng = self.rng
        start = rng.uniform(0, self.size) if self.placed else self.size / 2
        self.placed.append((start[0], start[1], 8.0))
        path = self._path(start, self.fibre + rng.normal(0, 0.5), rng.uniform(45, 90), 0.1)
        core, coat = rng.uniform(2.0, 5.0), 2.2 * self.half
        free = 255 - self.epithelium  # a finger does not erase its neighbours
        halo = np.zeros_like(self.clear)
        self._stroke(halo, path, 2 * (core + coat) + 9, 255)
        np.maximum(self.clear, np.minimum(halo, free), out=self.clear)
        self._stroke(self.clear, path, 2 * (core + coat), 0)
        self._stroke(self.epithelium, path, 2 * (core + coat), 255)
        self._stroke(self.epithelium, path, 2 * core, 0)
        points, along = _along(path, 1.9 * self.half, closed=False)
        side = np.stack([-np.sin(along), np.cos(along)], axis=1)
        for sign in (-1.0, 1.0):
            self._epithelial(points + sign * side * (core + 0.5 * coat), along + np.pi / 2, 0.7)
        return True

    def build(self, nuclear: float) -> None:
        """Add structures until their nuclei cover their part of `nuclear`; `stromal` adds the rest."""
        habit, rng = self.habit, self.rng
        shares = np.array([habit.gland, habit.nest, habit.cord, habit.finger])
        makers = (self.gland, self.nest, self.cord, self.finger)
        misses = 0
        while misses < 4 and self.covered() < nuclear * (1 - habit.stroma):
            misses += not makers[int(rng.choice(4, p=shares / shares.sum()))]()

    def covered(self) -> float:
        """Return the fraction of the image that nuclei cover."""
        return np.count_nonzero(self.nuclei > 100) / self.nuclei.size

    def stromal(self, nuclear: float) -> None:
        """Draw spindle cells along the fibres and a few lymphocytes, the same in both classes."""
        rng = self.rng
        missing = (nuclear - self.covered()) * float(self.size.prod())
        n = int(np.clip(missing / 17.0, 4, 4000))
        at = rng.uniform(0, self.size, (n, 2))
        pixel = np.minimum((at * self.scale).astype(int), np.array(self.nuclei.shape[::-1]) - 1)
        taken = np.maximum(np.maximum(self.epithelium, self.clear), self.pool)
        keep = taken[pixel[:, 1], pixel[:, 0]] < 128
        at, n = at[keep], int(keep.sum())
        round_ = rng.uniform(size=n) < 0.2
        half = np.where(round_, 2.3, 4.2) * np.exp(rng.normal(0, 0.15, n))
        aspect = np.where(round_, 0.9, rng.uniform(0.25, 0.42, n))
        self.stamp(at, half, aspect, self.fibre + rng.normal(0, 0.3, n), 0.04)

    def whiten(self, white: float) -> None:
        """Bring the clear fraction to `white`: add fat cells if it is too small, secretion if it is too large."""
        rng, total = self.rng, self.clear.size
        np.minimum(self.clear, 255 - self.nuclei, out=self.clear)  # areas under nuclei are not white
        for _ in range(60):
            lack = white - self.clear.sum(dtype=np.int64) / (255.0 * total)
            if lack < 0.004:
                break
            radius = min(rng.uniform(12, 24), float(np.sqrt(1.2 * lack * self.size.prod() / np.pi)) + 1.0)
            hole = np.zeros_like(self.clear)
            centre = rng.uniform(0, self.size)
            self._fill(hole, centre + _outline(rng, radius, radius * rng.uniform(0.75, 1), 0.0, 0.08), 255)
            hole = np.minimum(hole, 255 - np.maximum(self.epithelium, self.nuclei))
            np.maximum(self.clear, hole, out=self.clear)
        share = self.clear / 255.0
        over = share.mean() - white
        if over > 0.004:
            murk = grain_noise(rng, *self.clear.shape, sigma=2.5 * self.scale)
            murk += 0.4 * grain_noise(rng, *self.clear.shape, sigma=max(0.8 * self.scale, 0.6))
            level = np.quantile(murk[self.clear > 127], min(over / share.mean(), 1.0))
            filled = np.clip(0.5 + (level - murk) * 2.5, 0.0, 1.0)
            self.clear = np.rint(255.0 * share * (1.0 - filled)).astype(np.uint8)
            np.maximum(self.pool, np.rint(255.0 * share * filled).astype(np.uint8), out=self.pool)

    def finish(self) -> Tissue:
        """Combine the layers: nuclei are blue, cytoplasm and fibres pink, pools pale."""
        rng, scale = self.rng, self.scale
        shape = self.nuclei.shape
        nuclei, pool = self.nuclei / 255.0, self.pool / 255.0
        cells = self.epithelium / 255.0
        tissue = np.maximum(1.0 - self.clear / 255.0, nuclei)
        pool = np.minimum(pool, 1.0 - cells)
        fine = grain_noise(rng, *shape, sigma=max(0.9 * scale, 0.6))
        grain = grain_noise(rng, *shape, sigma=max(0.4 * scale, 0.6))
        broad = smooth_noise(rng, *shape, cell=22.0 * scale)
        fibres = self._fibres(shape)
        stroma = (1.0 - cells) * (1.0 - pool)
        pink = stroma * np.clip(0.62 + 0.24 * fibres + 0.10 * broad, 0.15, None)
        pink += cells * np.clip(0.50 + 0.07 * fine + 0.05 * broad, 0.1, None) + pool * (0.16 + 0.03 * broad)
        pink *= 1.0 - 0.35 * nuclei
        blue = 0.10 * stroma + cells * np.clip(0.22 + 0.04 * fine, 0.0, None) + 0.10 * pool
        blue = blue * (1.0 - nuclei) + nuclei * np.clip(1.0 + 0.13 * grain, 0.4, None)
        return Tissue(np.clip(blue, 0, None), np.clip(pink, 0.02, None), tissue)

    def _fibres(self, shape: tuple[int, int]) -> Array:
        """Draw streaks (h, w) along the fibre direction, bent by a slow warp, with a standard deviation of about 1."""
        rng, scale = self.rng, self.scale
        y, x = np.mgrid[: shape[0], : shape[1]] / scale
        bend = smooth_noise(rng, *shape, cell=40.0 * scale)
        u = x * np.cos(self.fibre) + y * np.sin(self.fibre)
        v = -x * np.sin(self.fibre) + y * np.cos(self.fibre) + 6.0 * bend
        out = np.zeros(shape)
        for long, short, weight in ((34.0, 3.6, 0.8), (18.0, 1.7, 0.6)):
            table = rng.normal(size=(64, 256))
            i, j = u / long + 2.0 * bend, v / short
            i0, j0 = np.floor(i).astype(int), np.floor(j).astype(int)
            di, dj = i - i0, j - j0
            di, dj = di * di * (3 - 2 * di), dj * dj * (3 - 2 * dj)
            low = table[i0 % 64, j0 % 256] * (1 - dj) + table[i0 % 64, (j0 + 1) % 256] * dj
            high = table[(i0 + 1) % 64, j0 % 256] * (1 - dj) + table[(i0 + 1) % 64, (j0 + 1) % 256] * dj
            out += 1.5 * weight * (low * (1 - di) + high * di)
        return out


def draw_tissue(rng: np.random.Generator, habit: Habit, grade: float, height: int, width: int, scale: float) -> Tissue:
    """Draw a field of view.

    Args:
      rng: draws everything random.
      habit: the structures.
      grade: from 0 to 1.
      height: pixels.
      width: pixels.
      scale: pixels per unit of length.
    """
    # Drawn first and from one distribution, because the amounts of white and of nuclei must not reveal the class.
    white, nuclear = rng.uniform(0.04, 0.20), rng.uniform(0.14, 0.22)
    field = _Field(rng, habit, float(np.clip(grade, 0.0, 1.0)), height, width, scale)
    field.build(nuclear)
    field.whiten(white)
    field.stromal(nuclear)
    return field.finish()
