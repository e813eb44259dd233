"""How to split: the fields of `config.data.split`, and what a protocol is called."""

import dataclasses

from data_pipelines.errors import DataError
from data_pipelines.records import Records

# The record's field that must not stand on two sides.
GROUPS = {"case": "case_id", "patient": "patient_id", "slide": "slide_id", "source": "source_id"}
_NOUNS = {"case_id": "case", "patient_id": "patient", "slide_id": "slide", "source_id": "source image"}
PROTOCOLS = ("auto", *GROUPS, "image", "given", "folds", "listed")
_WITHOUT_FRACTION = ("given", "folds", "listed")  # their test sides are known before


@dataclasses.dataclass(frozen=True)
class Definition:
    """What a split's protocol is called.

    Attributes:
      name: of `data_pipelines.protocols`.
      version: of that name's meaning.
      hash: of all that it fixes.
    """

    name: str
    version: int
    hash: str

    @property
    def tag(self) -> str:
        """All three in one word."""
        return f"{self.name}-v{self.version}-{self.hash}"


@dataclasses.dataclass(frozen=True)
class SplitSpec:
    """How to split; the fields of `config.data.split`.

    Attributes:
      protocol: one of `PROTOCOLS`; `auto` is what `resolve` makes of it, `listed` has its `test_patients`.
      test_fraction: share of all images (`kfolds`, `given`, `folds` and `listed` ignore it).
      val_fraction: share of what is not test; 0 for no validation side; ignored where `given` names one.
      seed: of the random order.
      kfolds: number of folds; 0 for a single hold-out.
      fold: which fold is the test side: 0 … kfolds-1, or 1 … 5 for `folds`.
      folds_dir: folder with `dsfold1.txt` … `dsfold5.txt`.
      duplicates: `drop` keeps one of each set of identical images; `keep` keeps them together on one side; `ignore`
        leaves them where chance puts them, as most of the literature does.
      test_patients: of `listed`, all of whose images are tested on.

    Raises:
      DataError: a field that means nothing.
    """

    protocol: str = "case"
    test_fraction: float = 0.25
    val_fraction: float = 0.2
    seed: int = 0
    kfolds: int = 0
    fold: int = 0
    folds_dir: str = ""
    duplicates: str = "drop"
    test_patients: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        def require(ok: bool, message: str) -> None:
            if not ok:
                raise DataError(f"data.split.{message}")

        require(self.protocol in PROTOCOLS, f"protocol='{self.protocol}' is not one of {', '.join(PROTOCOLS)}")
        require(
            self.duplicates in ("drop", "keep", "ignore"),
            f"duplicates='{self.duplicates}' is not one of drop, keep, ignore",
        )
        require(0 <= self.val_fraction < 1, f"val_fraction={self.val_fraction} is not in [0, 1)")
        require(
            bool(self.test_patients) == (self.protocol == "listed"),
            f"protocol='{self.protocol}' with {len(self.test_patients)} test_patients: they belong to 'listed'",
        )
        if self.protocol == "folds":
            require(1 <= self.fold <= 5, f"fold={self.fold}: the official folds are 1 to 5")
            require(
                bool(self.folds_dir),
                "folds_dir is empty: name the folder that holds dsfold1.txt … dsfold5.txt",
            )
            require(not self.kfolds, "kfolds and the official folds exclude each other: set kfolds=0")
        elif self.kfolds:
            require(self.protocol not in _WITHOUT_FRACTION, "kfolds and a given split exclude each other: set kfolds=0")
            require(self.kfolds >= 2, f"kfolds={self.kfolds} is not 0 or at least 2")
            require(0 <= self.fold < self.kfolds, f"fold={self.fold} is not in 0 … {self.kfolds - 1}")
        else:
            require(self.fold == 0, f"fold={self.fold} has no meaning without kfolds or protocol=folds")
            require(0 < self.test_fraction < 1, f"test_fraction={self.test_fraction} is not in (0, 1)")


def resolve(spec: SplitSpec, records: Records) -> SplitSpec:
    """The spec with `auto` replaced by the strictest protocol that the records allow.

    That is the dataset's own split where it has one (and no k folds are wanted), else the first of case, patient,
    slide and source image that is known of every image, else single images.

    Raises:
      DataError: a protocol that needs what is not known of every image.
    """
    if spec.protocol == "auto":
        if not spec.kfolds and _known(records, "given_split") == len(records):
            return dataclasses.replace(spec, protocol="given")
        names = {field: name for name, field in GROUPS.items()}
        return dataclasses.replace(spec, protocol=names.get(_strictest(records), "image"))
    field = "given_split" if spec.protocol == "given" else GROUPS.get(spec.protocol)
    field = "patient_id" if spec.protocol == "listed" else field
    if field and (known := _known(records, field)) < len(records):
        what = "the table's column 'split'" if field == "given_split" else field
        raise DataError(
            f"data.split.protocol='{spec.protocol}' needs {what} of every image, and {len(records) - known} of "
            f"{len(records)} have none; auto takes the strictest protocol that the data allow"
        )
    return spec


def group_field(spec: SplitSpec, records: Records) -> str:
    """The record's field that a resolved protocol keeps on one side; empty for single images."""
    if spec.protocol == "given":
        field = _strictest(records)
        return "" if field and _on_several_sides(records, field) else field
    return "patient_id" if spec.protocol in ("folds", "listed") else GROUPS.get(spec.protocol, "")


def describe(spec: SplitSpec, records: Records) -> str:
    """A resolved protocol in a few words, as results print it."""
    copies = ", copies as they come" if spec.duplicates == "ignore" else ""
    return _describe(spec, records) + copies


def _describe(spec: SplitSpec, records: Records) -> str:
    if spec.protocol == "folds":
        return f"official fold {spec.fold} (patient-disjoint)"
    if spec.protocol == "listed":
        return f"{len(spec.test_patients)} listed patients test (patient-disjoint)"
    if spec.protocol == "given":
        return f"as the dataset's own table gives it ({_given_in_words(records)})"
    if spec.protocol == "image":
        known = _known(records, "patient_id") == len(records)
        shared = "patients on both sides" if known else "patients unknown, most likely on both sides"
        name = f"image-level ({shared}: optimistic)"
    elif spec.protocol == "patient" and _known(records, "case_id"):
        name = "patient-disjoint (slide folders)"  # BreakHis, where a case may have several
    else:
        name = _NOUNS[GROUPS[spec.protocol]].replace(" ", "-") + "-disjoint"
        if spec.protocol in ("slide", "source"):
            name += " (patients unknown)"
    if spec.kfolds:
        return f"{name}, fold {spec.fold} of {spec.kfolds}, seed {spec.seed}"
    return f"{name}, {spec.test_fraction:.0%} test, seed {spec.seed}"


def _known(records: Records, field: str) -> int:
    return sum(bool(getattr(record, field)) for record in records)


def _strictest(records: Records) -> str:
    """The first field of `GROUPS` that is known of every record; empty if none is."""
    return next((field for field in GROUPS.values() if _known(records, field) == len(records)), "")


def _on_several_sides(records: Records, field: str) -> list[str]:
    sides: dict[str, set[str]] = {}
    for record in records:
        sides.setdefault(getattr(record, field), set()).add(record.given_split)
    return [group for group, there in sides.items() if len(there) > 1]


def _given_in_words(records: Records) -> str:
    field = _strictest(records)
    if not field:
        return "patients unknown, possibly on both sides"
    shared = _on_several_sides(records, field)
    noun = _NOUNS[field]
    return f"{len(shared)} {noun}(s) on several sides: optimistic" if shared else f"{noun}-disjoint"
