"""Images of an audit with their labels, patients and sides; malformed tables."""

import pathlib

import pytest

from data_pipelines.audit.inputs import find, misnamed, read_fold_sides, read_split
from data_pipelines.errors import DataError
from tests.conftest import WriteImages


def _named(root: pathlib.Path) -> dict[str, tuple[str, str, str, str]]:
    return {s.name: (s.image_id, s.label, s.patient_id, s.given_split) for s in find(root)}


def test_folder_is_the_class(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path, ["tumor/1.png", "tumor/1.jpg", "x/stroma/2.tif", "loose.png", ".hidden/3.png"])
    assert _named(tmp_path) == {
        "loose.png": ("loose", "", "", ""),
        "tumor/1.jpg": ("tumor/1.jpg", "tumor", "", ""),  # not unique without the suffix
        "tumor/1.png": ("tumor/1.png", "tumor", "", ""),
        "x/stroma/2.tif": ("x/stroma/2", "stroma", "", ""),
    }


def test_breakhis_is_recognised_by_file_names(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path, ["lost/benign___SOB_B_A-14-22549AB-40-001.png", "SOB_M_LC-14-13412-100-002.jpg", "odd.png"])
    a, b, c = sorted(find(tmp_path), key=lambda s: s.image_id)
    assert (a.image_id, a.label, a.patient_id) == ("SOB_B_A-14-22549AB-40-001", "benign/A", "SOB_B_A_14-22549AB")
    assert (a.case_id, a.magnification) == ("14-22549", "40X")
    assert (b.image_id, b.label, b.patient_id) == ("SOB_M_LC-14-13412-100-002", "malignant/LC", "SOB_M_LC_14-13412")
    assert (c.image_id, c.label, c.patient_id, c.breakhis) == ("odd", "", "", None)
    assert misnamed([a, b, c]).keys() == {"odd.png"}
    assert misnamed([a, c]) == {}  # too few BreakHis names


def test_folders_named_train_and_test_are_sides(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path, ["Train/a/1.png", "validation/a/2.png", "test/3.png"])
    assert _named(tmp_path) == {
        "Train/a/1.png": ("Train/a/1", "a", "", "train"),
        "test/3.png": ("test/3", "", "", "test"),
        "validation/a/2.png": ("validation/a/2", "a", "", "val"),
    }
    write_images(tmp_path, ["other/4.png"])
    assert {s.given_split for s in find(tmp_path)} == {""}


def test_list_gives_labels_patients_and_sides(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path, ["i/1.png", "i/SOB_M_DC-14-2523-40-001.png"])
    (tmp_path / "list.csv").write_text(
        "\ufeffpath,label,patient_id,case_id,split\ni/1.png,tumor,p1,c1,Training\n"
        "i/SOB_M_DC-14-2523-40-001.png,dcis,,,\n"
    )
    one, two = find(tmp_path / "list.csv")
    assert (one.path, one.image_id, one.label) == (tmp_path / "i/1.png", "i/1.png", "tumor")
    assert (one.patient_id, one.case_id, one.given_split) == ("p1", "c1", "train")
    assert (two.label, two.patient_id, two.given_split) == (
        "dcis",
        "SOB_M_DC_14-2523",
        "",
    )  # from the list first, then from the name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n", "no row below the header"),
        ("path\na.png\n", "line 2: a list needs the columns path and label"),
        ("path,label\n,x\n", "line 2: a list needs"),
        ("path,label\na.png,x\na.png,y\n", "line 3: 'a.png' is already in an earlier row"),
        ("path,label\na.png,x,y\n", "line 2: 3 cells where the header has 2"),
        ("path,label,label\na.png,x,y\n", "column names repeat: label"),
        ("path,label,split\na.png,x,tset\n", "column split: 'tset' is not one of train"),
        ("path,label\na\0.png,x\n", "zero byte"),
    ],
)
def test_malformed_list_is_refused(tmp_path: pathlib.Path, content: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        find(tmp_path / "list.csv")
    assert "list.csv" in str(caught.value)


def test_missing_images_or_root_are_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="no image below this folder"):
        find(tmp_path)
    with pytest.raises(DataError, match="no such folder or list"):
        find(tmp_path / "nothing")


def test_split_names_images_by_id_path_or_file(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    root = tmp_path / "root"
    write_images(root, ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/5.png", "SOB_M_DC-14-2523-40-001.png"])
    (tmp_path / "split.csv").write_text(
        "path,split,patient_id\n"
        "a/1,train,p1\n"  # as the split that training writes
        "a/2.png,val,p1\n"  # relative to the root
        "root/b/1.png,test,p2\n"  # relative to the table
        "./b/2.png,test,p3\n"  # relative to the root, in another spelling
        "elsewhere/5.png,train,p3\n"  # only the file name matches
        "SOB_M_DC-14-2523-40-001,,p9\n"  # left out
        "gone.png,test,p4\n"
    )
    sources = find(root)
    found, splits, strange = read_split(tmp_path / "split.csv", root, sources)
    (sides,) = splits.values()
    assert {s.name: (side, s.patient_id) for s, side in zip(found, sides, strict=True)} == {
        "a/1.png": ("train", "p1"),
        "a/2.png": ("val", "p1"),
        "b/1.png": ("test", "p2"),
        "b/2.png": ("test", "p3"),
        "b/5.png": ("train", "p3"),
        "SOB_M_DC-14-2523-40-001.png": ("", "SOB_M_DC_14-2523"),  # from the file name, not the row
    }
    assert strange == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image_id,split\n1.png,train\n", "may be any of 2 images"),
        ("image_id,split\na/1,train\na/1.png,test\n", "line 3: 'a/1.png' is in test, but in train"),
        ("image_id,side\na/1,train\n", "needs the columns image_id"),
        ("image_id,split\nz/9,train\n", "no row names an image of"),
        ("image_id,split\na/1,middle\n", "'middle' is not one of train"),
    ],
)
def test_malformed_split_is_refused(
    tmp_path: pathlib.Path, write_images: WriteImages, content: str, message: str
) -> None:
    write_images(tmp_path, ["a/1.png", "b/1.png"])
    (tmp_path / "split.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_split(tmp_path / "split.csv", tmp_path, find(tmp_path))


def test_official_folds_give_sides_by_name(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path / "root", ["SOB_M_DC-14-2523-40-001.png", "SOB_B_A-14-22549AB-40-001.png", "odd.png"])
    sources = find(tmp_path / "root")
    with pytest.raises(DataError, match=r"dsfold1\.txt: no such file"):
        read_fold_sides(tmp_path, sources)
    (tmp_path / "dsfold2.txt").write_text("SOB_M_DC-14-2523-40-001.png|40|2|test\n")
    (tmp_path / "dsfold5.txt").write_text(
        "SOB_M_DC-14-2523-40-001.png|40|5|train\nSOB_B_A-14-22549AB-40-001.png|40|5|test\n"
    )
    assert [s.image_id[:5] for s in sources] == ["SOB_B", "SOB_M", "odd"]
    assert read_fold_sides(tmp_path, sources) == {"fold 2": ["", "test", ""], "fold 5": ["test", "train", ""]}
    (tmp_path / "dsfold3.txt").write_text("SOB_M_DC-14-9999-40-001.png|40|3|test\n")
    with pytest.raises(DataError, match=r"dsfold3\.txt names none of the 3 images"):
        read_fold_sides(tmp_path, sources)
