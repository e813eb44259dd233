"""Published sets by name, on small sets in the layouts that their publishers use. No real set is read here."""

import collections
import csv
import dataclasses
import pathlib
from collections.abc import Callable, Iterable

import cv2
import numpy as np
import pytest

from configs import image_folder
from data_pipelines.audit import audit
from data_pipelines.errors import DataError
from data_pipelines.image_folder import osteosarcoma, recipes
from data_pipelines.image_folder.recipes import RECIPES
from data_pipelines.split_spec import SplitSpec
from histojax.core.errors import RunError
from histojax.data.sources import Dataset, open_dataset
from histojax.training import experiments, leaks
from tests.data_pipelines.image_folder_test import by_name, write
from tests.training.leaks_test import blotches

EACH = 3  # images of each class and part


def named(pattern: str, classes: Iterable[str]) -> list[str]:
    return [pattern.format(label=label, low=label.lower(), i=i) for label in classes for i in range(EACH)]


def write_csv(path: pathlib.Path, header: str, rows: Iterable[tuple[object, ...]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def bach(root: pathlib.Path) -> None:
    write(root, *named("{label}/{low}{i}.tif", RECIPES["bach"].classes))
    (root / "Thumbs.db").write_bytes(b"no image")
    write_csv(root / "microscopy_ground_truth.csv", "normal0.tif,Normal", [("normal1.tif", "Normal")])  # no header


def nct_crc_he(root: pathlib.Path) -> None:
    train, test = (named(part + "/{label}/{label}-" + part[:3] + "{i}.tif", RECIPES["nct_crc_he"].classes)
                   for part in ("NCT-CRC-HE-100K", "CRC-VAL-HE-7K"))  # fmt: skip
    write(root, *train, *test)


def pcam(root: pathlib.Path) -> None:
    write(root, *(f"train/f{i}.tif" for i in range(2 * EACH)), "test/unlabelled.tif")
    write_csv(root / "train_labels.csv", "id,label", ((f"f{i}", i % 2) for i in range(2 * EACH)))
    write_csv(root / "sample_submission.csv", "id,label", [("unlabelled", 0)])


def lc25000(root: pathlib.Path) -> None:
    classes = RECIPES["lc25000"].classes
    write(root, *(f"{label.partition('_')[0]}_image_sets/{name}" for label in classes
                  for name in named("{label}/{label}{i}.jpeg", [label])))  # fmt: skip


def mhist(root: pathlib.Path) -> None:
    write(root, *(f"images/MHIST_{i}.png" for i in range(4 * EACH)))
    header = "Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"
    rows = [
        (f"MHIST_{i}.png", ("HP", "SSA")[i % 2], i % 8, ("train", "test")[i // (2 * EACH)]) for i in range(4 * EACH)
    ]
    write_csv(root / "annotations.csv", header, rows)


def oral_oscc(root: pathlib.Path) -> None:
    sets = {"100x": "First Set", "400x": "Second Set"}
    write(root, *(f"{folder}/{zoom} {label} Images/{label}_{zoom}_{i}.jpg" for zoom, folder in sets.items()
                  for label in ("Normal", "OSCC") for i in range(EACH)))  # fmt: skip


LABELS = ("Non-Tumor", "Viable", "Non-Viable-Tumor", "viable: non-viable")


def osteosarcoma_tiles(root: pathlib.Path) -> None:
    """The table writes `Case 48 - P5 C1 0` where the file is `Case-48-P5-C1-0.jpg`."""
    patients = ("Case 3 A1", "Case 4 - B2", "Case 48 - P5 C1", "P9 A7")
    rows = [(f"{patient} {i}", LABELS[i]) for patient in patients for i in range(4)]
    files = (f"{'-'.join(name.replace('-', ' ').split())}.jpg" for name, _ in rows)
    write(root, *(f"Training-Set-{1 + i % 2}/set{i % 3}/{file}" for i, file in enumerate(files)))
    write_csv(root / osteosarcoma.TABLE, "image.name,classification,area", ((*row, 1.5) for row in rows))


LAYOUTS: dict[str, Callable[[pathlib.Path], None]] = {
    "bach": bach, "nct_crc_he": nct_crc_he, "pcam": pcam, "lc25000": lc25000, "mhist": mhist, "oral_oscc": oral_oscc,
    "osteosarcoma": osteosarcoma_tiles,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recipe expects the numbers of the small sets."""
    for name, recipe in RECIPES.items():
        counts = {part: dict.fromkeys(classes, EACH) for part, classes in recipe.counts.items()}
        if name == "osteosarcoma":
            counts = {"": {"Non-Tumor": 4, "Viable": 8, "Non-Viable-Tumor": 4}}
        monkeypatch.setitem(RECIPES, name, dataclasses.replace(recipe, counts=counts))


def opened(tmp_path: pathlib.Path, name: str, folder: str = "", **fields: object) -> Dataset:
    config = experiments.read(f"image_folder:{name}")
    config.data.root, config.data.prepared_dir = str(tmp_path / "root" / folder), str(tmp_path / "prepared")
    config.data.update_from_flattened_dict(fields)
    return open_dataset(config.data)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.usefixtures("small")
def test_a_set_in_its_layout_is_read(tmp_path: pathlib.Path, name: str) -> None:
    LAYOUTS[name](tmp_path / "root")
    recipe, dataset = RECIPES[name], opened(tmp_path, name)
    assert sorted(dataset.classes) == recipe.classes
    assert dataset.classes[-1] == (recipe.positive or recipe.classes[-1])
    parts = by_name(dataset, recipe.by) if recipe.by else [""] * len(dataset.records)
    found = collections.Counter(zip(parts, by_name(dataset, "label"), strict=True))
    assert found == {(part, label): n for part, classes in recipe.counts.items() for label, n in classes.items()}
    notes = dataset.prepared.summary["notes"]
    assert notes == ({recipe.caveat: len(dataset.records)} if recipe.caveat else {})
    spec = SplitSpec("auto", kfolds=4) if name == "osteosarcoma" else SplitSpec("auto", val_fraction=0)
    protocol = dataset.split(spec).protocol
    expected = {"as published": "the dataset's own split", "patients (4)": "patient-disjoint"}
    assert protocol.startswith(expected.get(recipe.auto, "image-level"))


@pytest.mark.usefixtures("small")
def test_what_tables_and_names_say_is_read(tmp_path: pathlib.Path) -> None:
    mhist(tmp_path / "root")
    votes = opened(tmp_path, "mhist").records.further_columns()
    assert sorted(votes["table_Number of Annotators who Selected SSA (Out of 7)"]) == sorted("012345670123")
    osteosarcoma_tiles(tmp_path / "two" / "root")
    dataset = opened(tmp_path / "two", "osteosarcoma")
    assert sorted(set(by_name(dataset, "patient_id"))) == ["Case-3", "Case-4", "Case-48", "P9"]
    labels = dict(zip(by_name(dataset, "image_id"), by_name(dataset, "label"), strict=True))
    assert (labels["Case-48-P5-C1-3"], labels["Case-4-B2-2"]) == ("Viable", "Non-Viable-Tumor")


# ---- Numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_other_numbers_than_published_are_named_with_the_remedy(tmp_path: pathlib.Path, name: str) -> None:
    LAYOUTS[name](tmp_path / "root")
    with pytest.raises(DataError, match=rf"not the images of {name} as published: .* \d+ \(published \d+\)") as caught:
        opened(tmp_path, name)
    assert "--config.data.images.part=true" in str(caught.value)
    assert len(opened(tmp_path, name, **{"images.part": True}).records) > 0


@pytest.mark.usefixtures("small")
def test_more_images_than_published_are_no_part(tmp_path: pathlib.Path) -> None:
    bach(tmp_path / "root")
    write(tmp_path / "root", "Benign/more.tif", "Other/1.tif")
    for part in (False, True):
        with pytest.raises(DataError, match=r"as published: Benign 4 \(published 3\), Other 1 \(published 0\)\. Compl"):
            opened(tmp_path, "bach", **{"images.part": part})


@pytest.mark.usefixtures("small")
def test_one_side_alone_is_a_part(tmp_path: pathlib.Path) -> None:
    nct_crc_he(tmp_path / "root")
    for path in (tmp_path / "root" / "CRC-VAL-HE-7K").rglob("*.tif"):
        path.unlink()
    with pytest.raises(DataError, match=r"ADI 3 \(published 6\).* and 3 more"):
        opened(tmp_path, "nct_crc_he")
    assert len(opened(tmp_path, "nct_crc_he", **{"images.part": True}).records) == 27
    oral_oscc(tmp_path / "oral" / "root")
    dataset = opened(tmp_path / "oral", "oral_oscc", "Second Set", **{"images.part": True})
    assert set(by_name(dataset, "magnification")) == {"400x"}


def test_the_numbers_add_up_to_the_published_ones() -> None:
    published = {"bach": 400, "nct_crc_he": 107_180, "pcam": 220_025, "lc25000": 25_000, "mhist": 3_152,
                 "oral_oscc": 1_224, "osteosarcoma": 1_144}  # fmt: skip
    assert {name: recipe.images for name, recipe in RECIPES.items()} == published
    sides = {part: sum(classes.values()) for part, classes in RECIPES["mhist"].counts.items()}
    assert sides == {"train": 2_175, "test": 977}
    sides = {part: sum(classes.values()) for part, classes in RECIPES["nct_crc_he"].counts.items()}
    assert sides == {"train": 100_000, "test": 7_180}


# ---- What is refused -----------------------------------------------------------------------------------------------


def hdf5(root: pathlib.Path) -> None:
    root.mkdir()
    (root / "camelyonpatch_level_2_split_train_x.h5").write_bytes(b"")


def unknown_label(root: pathlib.Path) -> None:
    osteosarcoma_tiles(root)
    write_csv(root / osteosarcoma.TABLE, "image.name,classification", [("Case 3 A1 0", "Necrosis")])


def other_columns(root: pathlib.Path) -> None:
    osteosarcoma_tiles(root)
    write_csv(root / osteosarcoma.TABLE, "name,classification", [("Case 3 A1 0", "Viable")])


@pytest.mark.parametrize(
    ("name", "make", "fields", "message"),
    [
        ("pcam", hdf5, {}, r"(?s)train_labels\.csv: no such file.*HDF5 files .* are not read: use these TIFF files"),
        (
            "nct_crc_he",
            lambda root: write(root, "ADI/1.tif"),
            {},
            r"(?s)does not match .*reads a folder with NCT-CRC-HE",
        ),
        ("mhist", lambda root: write(root, "images/1.png"), {}, r"(?s)annotations\.csv: no such file.*bmirds\.github"),
        ("osteosarcoma", lambda root: write(root, "set1/1.jpg"), {}, r"(?s)ML_Features_1144\.csv: cannot be read"),
        ("osteosarcoma", unknown_label, {}, r"line 2, column classification: 'Necrosis' is none of the classes Non-"),
        ("osteosarcoma", other_columns, {}, r"no columns image\.name and classification; it has name, classification"),
        (
            "bach",
            bach,
            {"images.recipe": "", "images.part": True},
            r"data\.images\.part has an effect only with data\.",
        ),
        ("bach", bach, {"images.recipe": "bahc"}, r"data\.images\.recipe='bahc': no such recipe \(did you mean 'bach'"),
    ],
)
def test_another_layout_is_refused_with_the_expected_one(
    tmp_path: pathlib.Path, name: str, make: Callable[[pathlib.Path], None], fields: dict[str, object], message: str
) -> None:
    make(tmp_path / "root")
    with pytest.raises(DataError, match=message):
        opened(tmp_path, name, **fields)


# ---- Augmented siblings --------------------------------------------------------------------------------------------


def turned(picture: np.ndarray, degrees: float) -> np.ndarray:
    """Turn a picture as Augmentor does: enlarged, so that no corner is empty."""
    size = picture.shape[0]
    return cv2.warpAffine(picture, cv2.getRotationMatrix2D((size / 2, size / 2), degrees, 1.3), (size, size))


SIBLINGS = {"flip": lambda p: cv2.flip(p, 1), "quarter": lambda p: np.rot90(p), "turn": lambda p: turned(p, 15)}


@pytest.mark.parametrize("kind", SIBLINGS)
def test_siblings_are_found_if_mirrored_or_in_quarter_turns_only(
    tmp_path: pathlib.Path, kind: str, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LC25000 turns every image by up to 25°, so the search for leaks finds few of its siblings: the note says so."""
    lc25000(tmp_path / "root")
    for i, path in enumerate(sorted((tmp_path / "root").rglob("*.jpeg"))):
        picture = np.ascontiguousarray(SIBLINGS[kind](blotches(i - 1)) if i % 2 else blotches(i))
        assert cv2.imwrite(str(path), picture)
    found = audit.audit(tmp_path / "root").facts["duplicates"]
    assert len(found) == (0 if kind == "turn" else 7)
    dataset = opened(tmp_path, "lc25000")
    assert [note for note in dataset.prepared.summary["notes"] if "a split by image leaks" in note]
    config = experiments.read("image_folder:lc25000", [("data.root", str(tmp_path / "root"))])
    split = dataset.split(SplitSpec("image", val_fraction=0))
    if kind == "turn":
        assert leaks.check(config, dataset, split) == split
    else:
        with pytest.raises(RunError, match="leak: pairs of nearly identical pictures on two sides"):
            leaks.check(config, dataset, split)


@pytest.mark.usefixtures("small")
def test_siblings_are_kept_together_by_their_table(tmp_path: pathlib.Path) -> None:
    lc25000(tmp_path / "root")
    files = sorted((tmp_path / "root").rglob("*.jpeg"))
    rows = [(path.name, path.parent.name, path.parent.name.partition("_")[0], i % 5) for i, path in enumerate(files)]
    write_csv(tmp_path / "root" / "lc25000_image_groups.csv", "filename,label,tissue,group_id", rows)
    words = RECIPES["lc25000"].split.split("`")[1::2]
    fields = dict(word.removeprefix("data.").split("=") for word in words)  # the fields that the page of recipes shows
    dataset = opened(tmp_path, "lc25000", **fields)
    assert sorted(set(by_name(dataset, "case_id"))) == ["0", "1", "2", "3", "4"]
    rows_by_group = collections.defaultdict(set)
    for row in dataset.split(SplitSpec("auto", kfolds=5, val_fraction=0)).rows:
        rows_by_group[row.group].add(row.side)
    assert sorted(map(len, rows_by_group.values())) == [1] * 5


# ---- Config --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder where the synthetic images, which do not depend on the set, are made once."""
    return tmp_path_factory.mktemp("prepared")


@pytest.mark.parametrize("name", RECIPES)
def test_the_config_names_every_set_and_smoke_runs_on_synthetic_images(prepared_dir: pathlib.Path, name: str) -> None:
    assert tuple(RECIPES) == image_folder.SETS
    config = experiments.read(f"image_folder:{name},densenet121,smoke", [("data.prepared_dir", str(prepared_dir))])
    assert (config.data.images.recipe, config.model.name, config.data.synthetic) == (name, "densenet121", True)
    dataset = open_dataset(config.data)
    assert (dataset.classes, dataset.prepared.synthetic) == (("benign", "malignant"), True)
    with pytest.raises(RunError, match="the variants bach, mhist of this config exclude each other"):
        experiments.read("image_folder:bach,mhist")


@pytest.mark.usefixtures("small")
def test_fields_of_the_user_count_more_than_the_recipe(tmp_path: pathlib.Path) -> None:
    mhist(tmp_path / "root")
    (tmp_path / "root" / "images").rename(tmp_path / "root" / "png")
    dataset = opened(tmp_path, "mhist", **{"images.path_template": "png/{Image Name}", "images.positive": "HP"})
    assert dataset.classes == ("SSA", "HP")
    assert recipes.find("mhist").positive == "SSA"
