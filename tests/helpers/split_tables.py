"""Tables of records for the tests of splits: random ones, one with the published counts, and special cases."""

import dataclasses
import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.breakhis.filenames import DUPLICATE_SLIDES, MAGNIFICATIONS, PUBLISHED_COUNTS
from data_pipelines.records import Record, Records
from data_pipelines.split_groups import Member
from data_pipelines.split_spec import SplitSpec
from data_pipelines.splits import Split, make_split

BENIGN_SUBTYPES = ("A", "F", "PT", "TA")
PUBLISHED_PATIENTS = {"A": 4, "F": 10, "PT": 3, "TA": 7, "DC": 38, "LC": 5, "MC": 9, "PC": 6}
GROUPED_PROTOCOLS = ["case", "patient"]
GROUP_FIELD = {"case": "case_id", "patient": "patient_id"}


def fake_hash(*parts: object) -> str:
    """A hash of `parts` that stands for the hash of an image's pixels."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Table:
    """All images of a dataset, with views and splits of one magnification."""

    rows: tuple[Record, ...]

    @property
    def members(self) -> list[Member]:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        record_of = {row.patient_id: row for row in self.rows}
        for row in self.rows:
            counts[row.patient_id][row.magnification] += 1
        return [Member(p, record_of[p].case_id, record_of[p].label, dict(counts[p])) for p in sorted(counts)]

    def records(self, magnification: str = "") -> Records:
        return Records(row for row in self.rows if magnification in ("", row.magnification))

    def split(
        self, spec: SplitSpec | None = None, magnification: str = "", order: Sequence[int] = (), **fields: Any
    ) -> Split:
        records = self.records(magnification)
        if len(order):
            records = records.take(order)
        labels = records.column("label").tolist()
        return make_split(records, labels, self.members, spec or SplitSpec(**fields), DUPLICATE_SLIDES)


def patient_records(subtype: str, slide: str, counts: dict[str, int], label: str = "", case: str = "") -> list[Record]:
    cls = "B" if subtype in BENIGN_SUBTYPES else "M"
    return [
        Record(
            image_id=f"SOB_{cls}_{subtype}-14-{slide}-{magnification[:-1]}-{i:03d}",
            label=label or ("benign" if cls == "B" else "malignant"),
            subtype=subtype,
            patient_id=f"SOB_{cls}_{subtype}_14-{slide}",
            case_id=case or f"14-{slide.rstrip('ABCDEFG')}",
            magnification=magnification,
            pixel_hash=fake_hash(subtype, slide, magnification, i),
        )
        for magnification, n in counts.items()
        for i in range(1, n + 1)
    ]


def random_table(seed: int, copies: int = 0, magnifications: Sequence[str] = ("40X", "100X", "400X")) -> Table:
    """Make 10 to 35 cases with one or two slides and 1 to 14 images per magnification; repeat up to `copies` images."""
    rng = np.random.default_rng(seed)
    rows: list[Record] = []
    for case in range(int(rng.integers(10, 36))):
        subtype = "F" if case < 3 else "DC" if case < 6 else str(rng.choice(list(PUBLISHED_COUNTS)))
        for suffix in ("", "CD")[: int(rng.integers(1, 3))]:
            counts = {m: int(rng.integers(1, 15)) for m in magnifications}
            rows += patient_records(subtype, f"{1000 + case}{suffix}", counts)
    for _ in range(copies):
        # Copies keep the class, but may lie in another patient's slide.
        original, copy = rng.integers(len(rows), size=2)
        if rows[original].label == rows[copy].label and rows[original].magnification == rows[copy].magnification:
            rows[copy] = dataclasses.replace(rows[copy], pixel_hash=rows[original].pixel_hash)
    return Table(tuple(rows))


def published_table(seed: int) -> Table:
    """Make 82 patients with BreakHis's published counts; images are distributed over patients at random."""
    rng = np.random.default_rng(seed)
    slides = itertools.count(20_000)
    rows: list[Record] = []
    for subtype, patients in PUBLISHED_PATIENTS.items():
        fractions = rng.dirichlet(np.full(patients, 8.0))  # 10 to 40 images each, as in the published dataset
        spread = [rng.multinomial(total - 3 * patients, fractions) + 3 for total in PUBLISHED_COUNTS[subtype]]
        for patient in range(patients):
            counts = {m: int(spread[i][patient]) for i, m in enumerate(MAGNIFICATIONS)}
            rows += patient_records(subtype, str(next(slides)), counts)
    return Table(tuple(rows))


def table_with_benign_cases(n_cases: int) -> Table:
    rows = [r for i in range(n_cases) for r in patient_records("F", str(1000 + i), {"40X": 4})]
    return Table(tuple(rows + [r for i in range(12) for r in patient_records("DC", str(2000 + i), {"40X": 4})]))


def table_with_13412(magnifications: Sequence[str] = ("40X", "100X"), relabel: bool = False) -> Table:
    """Make a table with slide 13412, which is filed under two subtypes: the same pixels under two names."""
    counts = dict.fromkeys(magnifications, 6)
    lobular = patient_records("LC", "13412", counts)
    ductal = [
        dataclasses.replace(copy, pixel_hash=original.pixel_hash, label="benign" if relabel else copy.label)
        for copy, original in zip(patient_records("DC", "13412", counts), lobular, strict=True)
    ]
    others = random_table(14, magnifications=magnifications).rows
    return Table((*ductal, *lobular, *others))


def side_of_image(split: Split) -> dict[str, str]:
    return {row.image_id: row.side for row in split.rows}


def assert_disjoint(split: Split, records: Records, field: str) -> None:
    """Check that no image, pixel hash or `field` value is on two sides, by the table's own groups."""
    sides = side_of_image(split)
    for key in ("image_id", "pixel_hash", field):
        sides_of: dict[str, set[str]] = defaultdict(set)
        for record in records:
            if sides[record.image_id]:
                sides_of[getattr(record, key)].add(sides[record.image_id])
        assert max(len(s) for s in sides_of.values()) == 1, key
