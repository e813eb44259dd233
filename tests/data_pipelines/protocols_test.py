"""Named protocols: what a name fixes, what its hash covers, and the splits that it gives."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import pytest

from data_pipelines import protocols
from data_pipelines.breakhis import filenames, published
from data_pipelines.errors import DataError
from data_pipelines.official_folds import read_folds, write_fold
from data_pipelines.records import Record, Records
from data_pipelines.split_groups import Member
from data_pipelines.split_spec import SplitSpec
from data_pipelines.splits import Split, make_split, place
from histojax.data.sources import open_dataset
from histojax.training import default_config
from tests.conftest import SHARED, WriteImages

FIELDS = default_config.base().data.split.to_dict()


def _spec(name: str, **fields: Any) -> SplitSpec:
    return protocols.split_spec(FIELDS | {"protocol": name} | fields)


def _record(image_id: str, picture: str = "") -> Record:
    name = filenames.parse(f"{image_id}.png")
    pixels = hashlib.sha256((picture or image_id).encode()).hexdigest()
    return Record(
        name.image_id, name.label, name.subtype, name.patient_id, name.case_id, name.magnification, pixels
    )  # fmt: skip


def _slides(subtype: str, slides: Sequence[str], images: int = 6, magnification: str = "40") -> list[Record]:
    cls = "B" if subtype in ("A", "F", "PT", "TA") else "M"
    return [
        _record(f"SOB_{cls}_{subtype}-14-{slide}-{magnification}-{i:03d}")
        for slide in slides
        for i in range(1, images + 1)
    ]


def _split(rows: Sequence[Record], spec: SplitSpec, field: str = "label") -> Split:
    records = Records(rows)
    counts: dict[str, Member] = {}
    for row in rows:
        images = dict(counts[row.patient_id].images) if row.patient_id in counts else {}
        images[row.magnification] = images.get(row.magnification, 0) + 1
        counts[row.patient_id] = Member(row.patient_id, row.case_id, getattr(row, field), images)
    labels = records.column(field).tolist()
    return make_split(records, labels, list(counts.values()), spec, filenames.DUPLICATE_SLIDES)


def _with_the_copied_slide() -> list[Record]:
    """Make eight benign and eight malignant slides, and slide 13412 under both of its names."""
    rows = _slides("F", [str(1000 + i) for i in range(8)]) + _slides("MC", [str(2000 + i) for i in range(8)])
    twice = [_record(f"SOB_M_{t}-14-13412-40-{i:03d}", f"13412/{i}") for t in ("DC", "LC") for i in range(1, 11)]
    return rows + twice


def test_name_fixes_the_whole_protocol() -> None:
    fields = {"folds": {"fold": 1, "folds_dir": "x"}}
    for name, protocol in protocols.REGISTRY.items():
        spec = _spec(name, **fields.get(protocol.kind, {}))
        assert (spec.protocol, spec.duplicates) == (protocol.kind, protocol.duplicates)
        assert protocols.define(spec, ["benign", "malignant"]).name == name
        # The name overrides the other fields.
        assert _spec(name, duplicates="keep", **fields.get(protocol.kind, {})) == spec
    assert len({protocols.define(_spec(n), ["a", "b"]).hash for n in protocols.REGISTRY if "folds" not in n}) == 25


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"protocol": "image"}, "image_deduplicated"),
        ({"protocol": "image", "duplicates": "ignore"}, "image_with_copies"),
        ({"protocol": "case"}, "case_deduplicated"),
        ({"protocol": "patient", "duplicates": "keep"}, "patient_copies_together"),
    ],
)
def test_short_names_keep_the_other_fields(fields: dict[str, str], name: str) -> None:
    spec = protocols.split_spec(FIELDS | fields)
    assert spec == SplitSpec(**FIELDS | fields)
    assert protocols.define(spec, ["a", "b"]) == protocols.define(_spec(name), ["b", "a"])


def test_hash_covers_the_recipe_and_not_its_numbers() -> None:
    def recipe_hash(classes: Sequence[str] = ("benign", "malignant"), **fields: Any) -> str:
        return protocols.define(_spec("case_deduplicated", **fields), classes).hash

    five = recipe_hash(kfolds=5)
    assert five == recipe_hash(kfolds=5, fold=3, seed=7) == recipe_hash(kfolds=5, test_fraction=0.1)
    others = [
        recipe_hash(kfolds=4),
        recipe_hash(),
        recipe_hash(test_fraction=0.1),
        recipe_hash(kfolds=5, val_fraction=0.0),
        recipe_hash(["A", "F"], kfolds=5),
    ]
    assert len({five, *others}) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"protocol": "images"}, r"protocol='images' is not one of auto, case, .*, thunder, .* suffix _with_copies"),
        ({"protocol": "listed"}, "protocol='listed' is not one of"),
        ({"protocol": "eva", "kfolds": 5}, "kfolds excludes a given split"),
        ({"protocol": "folds_with_copies"}, "fold=0 is not in 1 … 5, the official folds"),
    ],
)  # fmt: skip
def test_invalid_combinations_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        protocols.split_spec(FIELDS | fields)


@pytest.mark.parametrize("kfolds", [0, 4])
def test_ignored_copies_are_placed_at_random(kfolds: int) -> None:
    rows = _with_the_copied_slide()
    split = _split(rows, _spec("image_with_copies", kfolds=kfolds))
    assert all(row.side for row in split.rows)
    seen = {row.pixel_hash for row in split.rows if row.side != "test"}
    leaked = [row for row in split.rows if row.side == "test" and row.pixel_hash in seen]
    assert leaked
    assert split.warnings[0].startswith(f"{len(leaked)} test images have a copy of identical pixels")
    assert split.protocol.endswith("duplicates not handled")
    once = _split(rows, _spec("image_deduplicated", kfolds=kfolds))
    assert len(once.indices("test")) + len(once.indices("train")) + len(once.indices("val")) == len(rows) - 10
    assert once.warnings == ()


def test_ignoring_duplicates_without_copies_gives_the_same_split() -> None:
    rows = [row for row in _with_the_copied_slide() if "_DC_" not in row.patient_id]
    with_copies, deduplicated = (_split(rows, _spec(name)) for name in ("image_with_copies", "image_deduplicated"))
    assert with_copies.hash == deduplicated.hash
    assert with_copies.definition != deduplicated.definition


def test_copied_slide_is_on_two_sides_by_patient_but_never_by_case() -> None:
    rows = _with_the_copied_slide()
    sides: dict[str, list[set[str]]] = {"patient": [], "case": []}
    for kind, sides_of_seeds in sides.items():
        for seed in range(6):
            split = _split(rows, _spec(f"{kind}_with_copies", seed=seed))
            sides_of_seeds.append({row.side for row in split.rows if "13412" in row.image_id})
    assert any("test" in slide_sides and len(slide_sides) == 2 for slide_sides in sides["patient"])
    assert all(len(slide_sides) == 1 for slide_sides in sides["case"])


def test_protocol_name_is_saved_and_old_checkpoints_have_none() -> None:
    rows = _with_the_copied_slide()
    split = _split(rows, _spec("image_with_copies"))
    saved = split.to_json()
    restored = Split.from_json(saved)
    assert restored.definition == split.definition
    assert place(restored, Records(rows)).definition == split.definition
    assert place(restored, Records(rows)).hash == split.hash
    del saved["definition"]
    assert Split.from_json(saved).definition is None


def test_training_image_stays_out_of_the_test_side_of_another_root() -> None:
    rows = _with_the_copied_slide()
    split = _split(rows, _spec("image_with_copies"))
    sides: dict[str, set[str]] = {}
    for row in split.rows:
        sides.setdefault(row.pixel_hash, set()).add(row.side)
    both = {pixels for pixels, where in sides.items() if {"train", "test"} <= where}
    assert both
    renamed = [
        dataclasses.replace(row, image_id=f"copy-{row.image_id}", patient_id="new", case_id="new") for row in rows
    ]
    placed = place(split, Records(renamed))
    assert {row.side for row in placed.rows if row.pixel_hash in both} == {"train"}


def test_eva_lists_the_published_patients() -> None:
    slides = {"F": {"21998CD", "21998EF", "23060CD"}, "TA": {"15275", "16184CD"}, "MC": {"18842D", "19979"}}
    slides["DC"] = {"15792", "16875", "3909", "5287", "16716", "2773", "5695"}
    want = {
        f"SOB_{'B' if subtype in ('F', 'TA') else 'M'}_{subtype}_14-{slide}"
        for subtype in slides
        for slide in slides[subtype]
    }
    known = protocols.REGISTRY["eva"]
    assert set(known.test_patients) == want
    assert set(known.classes) == set(slides)
    column = filenames.MAGNIFICATIONS.index(known.magnification)
    assert sum(known.images) == sum(filenames.PUBLISHED_COUNTS[subtype][column] for subtype in slides)


def _eva_rows(test_images: int) -> list[Record]:
    """Make eva's 14 test patients with `test_images` images, 28 others with the rest of 1,471, and other classes."""
    subtypes = {name: name.split("_")[2] for name in protocols.REGISTRY["eva"].test_patients}
    rows: list[Record] = []
    for i, (patient, subtype) in enumerate(subtypes.items()):
        n = test_images // 14 + (i < test_images % 14)
        rows += _slides(subtype, [patient.rpartition("-")[2]], n)
    rest = 1471 - test_images
    for i in range(28):
        rows += _slides(("F", "TA", "DC", "MC")[i % 4], [str(40_000 + i)], rest // 28 + (i < rest % 28))
    return rows + _slides("PT", ["21998AB"], 5) + _slides("LC", ["13412"], 5)


@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_eva_tests_on_its_patients(val_fraction: float) -> None:
    rows = _eva_rows(339)
    known = protocols.REGISTRY["eva"]
    records = Records(rows)
    labels = [row.subtype if row.subtype in known.classes else "" for row in rows]
    spec = _spec("eva", val_fraction=val_fraction)
    split = make_split(records, labels, [], spec, filenames.DUPLICATE_SLIDES)
    side = {row.image_id: row.side for row in split.rows}
    tested = {row.patient_id for row in rows if side[row.image_id] == "test"}
    assert tested == set(known.test_patients)
    assert split.left_out() == {"of a class that the protocol is not about": 10}
    counts = [len(split.indices(name)) for name in ("train", "val", "test")]
    assert (counts[0] + counts[1], counts[2]) == (1132, 339)
    assert bool(counts[1]) == bool(val_fraction)
    assert split.definition is not None
    assert split.definition.name == "eva"
    protocols.check_published("eva", [row.side for row in split.rows if row.side])
    with pytest.raises(DataError, match="1131 training and 340 test images, but 1132 and 339 are published"):
        protocols.check_published("eva", ["train"] * 1131 + ["test"] * 340)
    protocols.check_published("eva", ["train"] * 10 + ["test"] * 340)  # only a part of the archive


def _thunder_rows() -> list[Record]:
    """Make two images of each listed patient, an image of a sibling of one in each side, and other patients."""
    known = protocols.REGISTRY["thunder"]
    rows: list[Record] = []
    for patient in (*known.test_patients, *known.val_patients):
        rows += _slides(patient.split("_")[2], [patient.rpartition("-")[2]], 2)
    rows += _slides("TA", ["16184"], 3) + _slides("F", ["23060AB"], 1)  # siblings of tested slides
    rows += _slides("TA", ["19854D"], 1)  # of one in validation
    for i, subtype in enumerate(known.classes):
        rows += _slides(subtype, [str(40_000 + i)], 2)
    return rows


def test_thunder_lists_both_sides_and_leaves_out_their_cases_on_request() -> None:
    rows = _thunder_rows()
    records, labels = Records(rows), [row.subtype for row in rows]
    sides = {}
    for name in ("thunder", "thunder_accession_clean"):
        split = make_split(records, labels, [], _spec(name), filenames.DUPLICATE_SLIDES)
        assert split.definition is not None
        assert split.definition.name == name
        sides[name] = {row.image_id: row for row in split.rows}
    published, clean = sides.values()
    known = protocols.REGISTRY["thunder"]
    for side, patients in (("test", known.test_patients), ("val", known.val_patients)):
        assert {row.group for row in published.values() if row.side == side} == set(patients)
    crossing = {name: row.note for name, row in clean.items() if row.side != published[name].side}
    assert {name.rpartition("-40-")[0] for name, note in crossing.items() if note == "of a tested case"} == {
        "SOB_B_TA-14-16184", "SOB_B_F-14-23060AB", "SOB_M_MC-14-18842",
    }  # fmt: skip
    assert {name for name, note in crossing.items() if note != "of a tested case"} == {"SOB_B_TA-14-19854D-40-001"}
    assert {row.side for name, row in clean.items() if name in crossing} == {""}


def test_thunder_divides_the_archive_as_published() -> None:
    if not (folds := SHARED / "breakhis_folds").is_dir():
        pytest.skip("BreakHis's fold files are not here")
    known = protocols.REGISTRY["thunder"]
    rows = [_record(name) for name in read_folds(folds, 1) if "-40-" in name]
    rows = [row for row in rows if row.subtype in known.classes]
    split = make_split(Records(rows), [row.subtype for row in rows], [], _spec("thunder"))
    assert [len(split.indices(side)) for side in ("train", "val", "test")] == [936, 196, 339]
    clean = make_split(Records(rows), [row.subtype for row in rows], [], _spec("thunder_accession_clean"))
    assert [len(clean.indices(side)) for side in ("train", "val", "test")] == [857, 181, 339]


def test_eva_as_a_dataset(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    rows = [row for row in _eva_rows(28) if row.image_id.endswith(("-001", "-002"))]
    write_images(tmp_path / "images", [f"{row.image_id}.png" for row in rows])
    config = default_config.base()
    config.data.root = str(tmp_path / "images")
    config.data.split.protocol = "eva"
    with pytest.raises(DataError, match=r"data\.task='binary': the protocol 'eva' needs data\.task=subtype"):
        open_dataset(config.data)
    config.data.task = "subtype"
    with pytest.raises(DataError, match=r"data\.magnification='100X': the protocol 'eva' needs .*=40X"):
        open_dataset(config.data)
    config.data.magnification = "40X"
    dataset = open_dataset(config.data)
    assert dataset.classes == ("F", "TA", "DC", "MC")
    split = dataset.split(protocols.split_spec(config.data.split))
    assert len(split.indices("test")) == 28
    assert sum(split.left_out().values()) == 4
    assert len(dataset.label_names) == len(dataset.records)
    foreign = {r.subtype for r, name in zip(dataset.records, dataset.label_names, strict=True) if not name}
    assert foreign == {"PT", "LC"}
    # An evaluation of the checkpoint opens the dataset and places its images in this way.
    restored = open_dataset(config.data, dataset.classes)
    saved = Split.from_json(split.to_json())
    assert restored.place(saved).hash == split.hash
    # Images of other classes are not tested under another root either.
    names = [f"SOB_B_PT-14-99999-100-00{i}.png" for i in (1, 2)] + ["SOB_B_F-14-88888-100-001.png"]
    write_images(tmp_path / "others", names, seed=1)
    config.data.update(root=str(tmp_path / "others"), magnification="100X")
    others = open_dataset(config.data, dataset.classes)
    sides = {row.image_id: row.side for row in others.place(saved).rows}
    assert sides == {names[0][:-4]: "", names[1][:-4]: "", names[2][:-4]: "test"}


@pytest.mark.parametrize("name", ["case_deduplicated", "patient_with_copies"])
def test_written_folds_are_read_as_the_same_split(name: str, tmp_path: pathlib.Path) -> None:
    rows = _with_the_copied_slide()
    tested: list[str] = []
    for fold in range(5):
        split = _split(rows, _spec(name, kfolds=5, fold=fold))
        path = write_fold(tmp_path, fold + 1, {row.image_id: row.side for row in split.rows})
        assert path == tmp_path / f"dsfold{fold + 1}.txt"
        side_of = read_folds(tmp_path, fold + 1)
        want = {r.image_id: "test" if r.side == "test" else "train" for r in split.rows if r.side}
        assert side_of == want
        read = _split(rows, _spec("folds_with_copies", fold=fold + 1, folds_dir=str(tmp_path), val_fraction=0.0))
        assert {r.image_id for r in read.rows if r.side == "test"} == {k for k, v in want.items() if v == "test"}
        tested += [image for image, side in side_of.items() if side == "test"]
    assert sorted(tested) == sorted(row.image_id for row in split.rows if row.side)
    first = (tmp_path / "dsfold1.txt").read_text().splitlines()[0]
    assert first.startswith("SOB_B_F-14-1000-40-001.png|40|1|t")


def test_folds_of_other_images_are_not_written(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"dsfold1\.txt can only hold BreakHis images: 'tile_1'"):
        write_fold(tmp_path, 1, {"tile_1": "test"})
    assert not list(tmp_path.iterdir())


def test_published_numbers_are_compared_with_the_same_protocol() -> None:
    image = published.beside("image", "binary", "100X")
    assert [(row.model.partition(",")[0], row.value) for row in image] == [
        ("DALAResNet50", 0.987),
        ("DenseNet-201-MSD", 0.988),
    ]
    patient = published.beside("patient", "binary", "400X")
    assert [(row.model, row.value, row.sd) for row in patient] == [
        ("ResNet50", 0.9267, 0.0435),
        ("Swin-T", 0.903, None),
    ]
    assert published.beside("case", "binary", "400X") == patient == published.beside("folds", "binary", "400X")
    assert {row.metric for row in published.beside("listed", "subtype", "40X")} == {"balanced_accuracy"}
    assert published.beside("image", "subtype", "40X") == ()
    assert all(0.5 < row.value < 1 and row.protocol and row.source for row in published.REPORTED)
