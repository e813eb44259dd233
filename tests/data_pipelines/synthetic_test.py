"""Synthetic BreakHis images: names, complete or no output, and classes that differ in shape but not in colour."""

import dataclasses
import hashlib
import json
import pathlib
import re

import cv2
import numpy as np
import pytest
from sklearn import linear_model, metrics, model_selection, neighbors, pipeline, preprocessing

from data_pipelines.breakhis.filenames import SUBTYPE_NAMES
from data_pipelines.synthetic import SyntheticSpec, generate, generator

SMALL = SyntheticSpec(
    cases_per_subtype=(1,) * 8, images_per_patient=2, magnifications=("40X", "400X"), height=48, width=64
)
NAME = re.compile(r"SOB_([BM])_(A|F|PT|TA|DC|LC|MC|PC)-(\d\d)-(\d+)(SYN[AB]?)-(40|100|200|400)-(\d{3})\.png")


def _digest(root: pathlib.Path) -> dict[str, str]:
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return generate(tmp_path_factory.mktemp("synthetic") / "small", SMALL)


def test_the_same_spec_gives_the_same_bytes(small: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert _digest(generate(tmp_path / "again", SMALL)) == _digest(small)


def test_another_seed_gives_other_pixels_under_the_same_names(small: pathlib.Path, tmp_path: pathlib.Path) -> None:
    one, other = _digest(small), _digest(generate(tmp_path / "other", dataclasses.replace(SMALL, seed=1)))
    assert one.keys() == other.keys()
    assert not set(one.values()) & set(other.values())
    assert len(set(one.values())) == len(one)  # no image twice


def test_a_smaller_spec_gives_a_subset_of_the_same_images(small: pathlib.Path, tmp_path: pathlib.Path) -> None:
    part = dataclasses.replace(SMALL, magnifications=("400X",), images_per_patient=1)
    got = _digest(generate(tmp_path / "part", part))
    got.pop("SYNTHETIC.json")
    assert got.items() <= _digest(small).items()


def test_folders_and_names_follow_breakhis(small: pathlib.Path) -> None:
    images = [p for p in small.rglob("*") if p.is_file() and p.name != "SYNTHETIC.json"]
    slides = {}
    for path in images:
        match = NAME.fullmatch(path.name)
        assert match, path.name
        label, code, year, digits, suffix, magnification, _ = match.groups()
        folder = path.relative_to(small / "BreaKHis_v1" / "histology_slides" / "breast").parts[:-1]
        tumor = {"B": "benign", "M": "malignant"}[label]
        slide = f"SOB_{label}_{code}_{year}-{digits}{suffix}"
        assert folder == (tumor, "SOB", SUBTYPE_NAMES[code], slide, f"{magnification}X")
        assert year == "14"
        assert (label == "B") == (code in ("A", "F", "PT", "TA"))
        slides[slide] = digits
        assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == (48, 64, 3)
    assert len(slides) == 9  # eight cases; one has two slides
    assert len(set(slides.values())) == 8
    assert len(images) == 9 * 2 * 2


def test_the_marker_file_holds_the_spec_and_a_warning(small: pathlib.Path) -> None:
    marker = json.loads((small / "SYNTHETIC.json").read_text())
    assert marker["synthetic"] is True
    assert marker["note"] == "computer-made images; no patient, no diagnosis"
    assert SyntheticSpec(**{f.name: marker[f.name] for f in dataclasses.fields(SyntheticSpec)}) == SMALL


def test_an_existing_set_is_not_written_again(small: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "_render", None)
    before = {p: p.stat().st_mtime_ns for p in small.rglob("*")}
    assert generate(str(small), SMALL) == small
    assert {p: p.stat().st_mtime_ns for p in small.rglob("*")} == before


@pytest.mark.parametrize("content", ["real.png", "SYNTHETIC.json"])
def test_a_folder_with_other_files_is_refused(tmp_path: pathlib.Path, content: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / content).write_text("{}")
    with pytest.raises(ValueError, match=r"root holds .*nothing was changed.*another folder"):
        generate(root, SMALL)
    assert _digest(tmp_path).keys() == {f"root/{content}"}


def test_an_existing_set_of_another_spec_is_refused(small: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="another version or spec"):
        generate(small, dataclasses.replace(SMALL, seed=3))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_no_files(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    render, calls = generator._render, []

    def fail(*args: object) -> object:
        calls.append(args)
        if len(calls) > 7:
            raise error("in the middle")
        return render(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(generator, "_render", fail)
    with pytest.raises(error, match="in the middle"):
        generate(tmp_path / "root", SMALL)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled(tmp_path: pathlib.Path) -> None:
    one = SyntheticSpec(cases_per_subtype=(1, *(0,) * 7), images_per_patient=1, height=32, width=32)
    assert generate(tmp_path, one) == tmp_path
    assert len(list(tmp_path.rglob("*.png"))) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magnifications": ("50X",)}, "50X"),
        ({"magnifications": ("40X", "40X")}, "each once"),
        ({"cases_per_subtype": (1, 2)}, "one count for each"),
        ({"cases_per_subtype": (0,) * 8}, "adds up to 0"),
        ({"images_per_patient": 1000}, "1 to 999"),
        ({"height": 8}, "8x"),
        ({"seed": -1}, "negative"),
    ],
)
def test_an_invalid_spec_is_refused_with_its_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticSpec(**change)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def default_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images (n, h, w, 3), malignant (n,) and case (n,) of the default spec at 100X."""
    root = generate(tmp_path_factory.mktemp("default") / "root", SyntheticSpec(magnifications=("100X",)))
    paths = sorted(root.rglob("*.png"))
    matches = [NAME.fullmatch(p.name) for p in paths]
    malignant = np.array([m is not None and m[1] == "M" for m in matches])
    cases = np.array([int(m[4]) for m in matches if m is not None])
    return np.stack([cv2.imread(str(p)) for p in paths]), malignant, cases


def _balanced_accuracy(model: object, x: np.ndarray, y: np.ndarray, cases: np.ndarray) -> float:
    model = pipeline.make_pipeline(preprocessing.StandardScaler(), model)
    folds = model_selection.GroupKFold(5)
    return float(
        metrics.balanced_accuracy_score(y, model_selection.cross_val_predict(model, x, y, groups=cases, cv=folds))
    )


def test_colour_does_not_predict_the_class(default_set: tuple[np.ndarray, ...]) -> None:
    images, malignant, cases = default_set
    colour = np.concatenate([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)
    logistic = linear_model.LogisticRegression(class_weight="balanced")
    assert _balanced_accuracy(logistic, colour, malignant, cases) < 0.65
    assert _balanced_accuracy(neighbors.NearestCentroid(), colour, malignant, cases) < 0.65


def test_shape_predicts_the_class(default_set: tuple[np.ndarray, ...]) -> None:
    images, malignant, cases = default_set

    def granulometry(image: np.ndarray) -> np.ndarray:
        """Return the fraction of the red channel's darkness (nuclei) that each size of opening removes."""
        dark = 255 - image[..., 2]
        remaining = [dark.mean()]
        for size in (3, 5, 7, 9, 13, 17):
            disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
            remaining.append(cv2.morphologyEx(dark, cv2.MORPH_OPEN, disc).mean())
        return np.diff(remaining) / remaining[0]

    sizes = np.stack([granulometry(image) for image in images])
    logistic = linear_model.LogisticRegression(class_weight="balanced")
    assert _balanced_accuracy(logistic, sizes, malignant, cases) > 0.85
