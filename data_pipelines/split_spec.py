"""How to split: the fields of `config.data.split`, and the name of a protocol."""

import dataclasses

from data_pipelines.errors import DataError
from data_pipelines.records import Records
from histojax.core.split_hash import GROUP_FIELDS

# Protocol -> the field of a record whose groups must not be divided between sides.
GROUPS = {field.removesuffix("_id"): field for field in GROUP_FIELDS if field}
_NOUNS = {"case_id": "case", "patient_id": "patient", "slide_id": "slide", "source_id": "source image", "site": "site"}
PROTOCOLS = ("auto", *GROUPS, "image", "given", "folds", "listed")
_MOSTLY = 0.9  # least fraction of images whose group is known for `auto` to divide by it
_WITHOUT_FRACTION = ("given", "folds", "listed")  # their test sides are known in advance


@dataclasses.dataclass(frozen=True)
class Definition:
    """The identity of a split's protocol.

    Attributes:
      name: a name from `data_pipelines.protocols`.
      version: version of that name's meaning.
      hash: hash of everything that the protocol fixes.
    """

    name: str
    version: int
    hash: str

    @property
    def tag(self) -> str:
        """Name, version and hash in one word."""
        return f"{self.name}-v{self.version}-{self.hash}"


@dataclasses.dataclass(frozen=True)
class SplitSpec:
    """How to split; the fields of `config.data.split`.

    Attributes:
      protocol: one of `PROTOCOLS`; `resolve` replaces `auto`; `listed` needs `test_patients`.
      test_fraction: test images as a fraction of all images; `kfolds`, `given`, `folds` and `listed` ignore it.
      val_fraction: validation images as a fraction of the images that are not test images; 0: no validation side;
        ignored if `given` names one.
      val_folds: the images that are not test images are divided into this many folds, by the groups of the protocol, of
        which `val_fold` is the validation side; 0: `val_fraction` decides.
      val_fold: 0 … val_folds-1.
      seed: random seed of the order.
      kfolds: number of folds; 0: a single hold-out.
      fold: the fold that is the test side: 0 … kfolds-1, or 1 … 5 for `folds`.
      folds_dir: folder with `dsfold1.txt` … `dsfold5.txt`.
      duplicates: `drop` keeps one image of each identical set; `keep` keeps all of them, together on one side; `ignore`
        divides them like other images, as most of the literature does.
      test_patients: for `listed`: the patients whose images are the test side.
      val_patients: for `listed`: the patients whose images are the validation side; empty: `val_fraction` decides.
      accession_clean: for `listed`: leave out the training and validation images of cases that are tested, and the
        training images of cases that are in validation.

    Raises:
      DataError: a field has an illegal value.
    """

    protocol: str = "case"
    test_fraction: float = 0.25
    val_fraction: float = 0.2
    val_folds: int = 0
    val_fold: int = 0
    seed: int = 0
    kfolds: int = 0
    fold: int = 0
    folds_dir: str = ""
    duplicates: str = "drop"
    test_patients: tuple[str, ...] = ()
    val_patients: tuple[str, ...] = ()
    accession_clean: bool = False

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
            f"protocol='{self.protocol}' with {len(self.test_patients)} test_patients: "
            "only 'listed' takes them, and needs them",
        )
        require(
            self.protocol == "listed" or not (self.val_patients or self.accession_clean),
            f"protocol='{self.protocol}': only 'listed' takes val_patients and accession_clean",
        )
        if self.val_folds:
            require(self.val_folds >= 2, f"val_folds={self.val_folds} is not 0 or at least 2")
            require(0 <= self.val_fold < self.val_folds, f"val_fold={self.val_fold} is not in 0 … {self.val_folds - 1}")
            require(
                not self.val_patients, "val_folds excludes a protocol that lists its validation patients: set it to 0"
            )
        else:
            require(self.val_fold == 0, f"val_fold={self.val_fold} needs val_folds")
        if self.protocol == "folds":
            require(1 <= self.fold <= 5, f"fold={self.fold} is not in 1 … 5, the official folds")
            require(
                bool(self.folds_dir),
                "folds_dir is empty: set it to the folder that holds dsfold1.txt … dsfold5.txt",
            )
            require(not self.kfolds, "kfolds excludes the official folds: set kfolds=0")
        elif self.kfolds:
            require(self.protocol not in _WITHOUT_FRACTION, "kfolds excludes a given split: set kfolds=0")
            require(self.kfolds >= 2, f"kfolds={self.kfolds} is not 0 or at least 2")
            require(0 <= self.fold < self.kfolds, f"fold={self.fold} is not in 0 … {self.kfolds - 1}")
        else:
            require(self.fold == 0, f"fold={self.fold} needs kfolds or protocol=folds")
            require(0 < self.test_fraction < 1, f"test_fraction={self.test_fraction} is not in (0, 1)")


def resolve(spec: SplitSpec, records: Records) -> SplitSpec:
    """Replace `auto` by the strictest protocol that the records allow.

    That is the dataset's own split if it has one and no k folds are requested; else the first of case, patient, slide
    and source image that is known for at least nine images of ten (the split leaves out the others); else single
    images.

    Raises:
      DataError: the protocol needs a field that is unknown for some images.
    """
    if spec.protocol == "auto":
        if not spec.kfolds and _known(records, "given_split") == len(records):
            return dataclasses.replace(spec, protocol="given")
        candidates = {name: field for name, field in GROUPS.items() if name != "site"}  # of which there are too few
        mostly = (name for name, field in candidates.items() if _known(records, field) >= _MOSTLY * len(records))
        return dataclasses.replace(spec, protocol=next(mostly, "image"))
    field = "given_split" if spec.protocol == "given" else GROUPS.get(spec.protocol)
    field = "patient_id" if spec.protocol == "listed" else field
    if field and (known := _known(records, field)) < len(records):
        what = "the table's column 'split'" if field == "given_split" else field
        raise DataError(
            f"data.split.protocol='{spec.protocol}' needs {what} for every image, but {len(records) - known} of "
            f"{len(records)} have none; fill them in, or set data.split.protocol=auto, which uses the strictest "
            "protocol that the data allow"
        )
    return spec


def group_warnings(spec: SplitSpec, records: Records) -> list[str]:
    """Warn about images whose group a resolved protocol does not know, and about groups that it does not use."""
    warnings = []
    for field in GROUPS.values():
        known, n = _known(records, field), len(records)
        if spec.protocol in GROUPS and field == GROUPS[spec.protocol]:
            if known < n:
                warnings.append(f"{n - known} of {n} images have no {field} and are left out: fill in the column")
            break
        if 0 < known < n:
            warnings.append(f"{field} is not used, because only {known} of {n} images have one: fill in the column")
    return warnings


def count_groups(noun_field: str, number: int) -> str:
    """Return a number of groups with its noun, such as "1 patient"; an empty field means single images."""
    noun = _NOUNS.get(noun_field, "picture")
    return f"{number} {noun}" + ("" if number == 1 else "s")


def group_field(spec: SplitSpec, records: Records) -> str:
    """Return the field of a record whose groups a resolved protocol keeps on one side; empty for single images."""
    if spec.protocol == "given":
        field = _strictest(records)
        return "" if field and _on_several_sides(records, field) else field
    return "patient_id" if spec.protocol in ("folds", "listed") else GROUPS.get(spec.protocol, "")


def describe(spec: SplitSpec, records: Records) -> str:
    """Describe a resolved protocol in a few words, as results print it."""
    copies = ", duplicates not handled" if spec.duplicates == "ignore" else ""
    return _describe(spec, records) + copies


def _describe(spec: SplitSpec, records: Records) -> str:
    if spec.protocol == "folds":
        return f"official fold {spec.fold} (patient-disjoint)"
    if spec.protocol == "listed":
        disjoint = "accession-clean" if spec.accession_clean else "patient-disjoint"
        return f"{len(spec.test_patients)} listed patients test ({disjoint})"
    if spec.protocol == "given":
        return f"the dataset's own split ({_describe_given(records)})"
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
    """Return the first field of `GROUPS` that is known for every record; empty if none is."""
    return next((field for field in GROUPS.values() if _known(records, field) == len(records)), "")


def _on_several_sides(records: Records, field: str) -> list[str]:
    sides: dict[str, set[str]] = {}
    for record in records:
        sides.setdefault(getattr(record, field), set()).add(record.given_split)
    return [group for group, group_sides in sides.items() if len(group_sides) > 1]


def _describe_given(records: Records) -> str:
    field = _strictest(records)
    if not field:
        return "patients unknown, possibly on both sides"
    shared = _on_several_sides(records, field)
    noun = _NOUNS[field]
    return f"{len(shared)} {noun}(s) on several sides: optimistic" if shared else f"{noun}-disjoint"
