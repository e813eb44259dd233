"""Galleries of tables, runs and explanations: their images and maps."""

import json
import pathlib
import re

import cv2
import numpy as np
import pandas as pd
import pytest

from histojax.core.errors import RunError
from histojax.evaluation import predictions
from histojax.evaluation.view.gallery import Gallery
from histojax.inference import galleries
from histojax.inference.explain import pictures

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0)}


def write_images(folder: pathlib.Path) -> list[pathlib.Path]:
    folder.mkdir(parents=True)
    for name, rgb in COLOURS.items():
        cv2.imwrite(str(folder / f"{name}.png"), np.full((30, 40, 3), rgb[::-1], np.uint8))
    return [folder / f"{name}.png" for name in COLOURS]


def mean_colour(jpeg: bytes | None) -> list[int]:
    assert jpeg is not None
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return [int(value) for value in pixels[..., ::-1].reshape(-1, 3).mean(0).round(-1)]


def pictures_by_name(gallery: Gallery) -> dict[str, list[int]]:
    found = {}
    for number, (_, item) in enumerate(gallery._items):
        found[pathlib.Path(item.image_id).stem] = mean_colour(gallery.read(f"pictures/{number}.jpg"))
    return found


def table_of(names: list[str], **columns: object) -> pd.DataFrame:
    return pd.DataFrame(
        {"image_id": names, "prob_x": [0.1, 0.8], "prob_y": [0.9, 0.2], "predicted": ["y", "x"]} | columns
    )


def test_images_are_found_by_their_names_as_predict_writes_them(tmp_path: pathlib.Path) -> None:
    images = write_images(tmp_path / "images")
    table_of([str(path) for path in images]).to_csv(tmp_path / "predictions.csv", index=False)
    for place in (tmp_path, tmp_path / "predictions.csv"):
        with galleries.of_predictions(place, []) as gallery:
            assert pictures_by_name(gallery) == {name: list(rgb) for name, rgb in COLOURS.items()}


def test_images_are_found_by_a_column_or_where_they_are_now(tmp_path: pathlib.Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "images").rename(tmp_path / "moved")
    table_of(["images/red.png", "images/green.png"]).to_parquet(tmp_path / "t.parquet")
    with galleries.of_predictions(tmp_path / "t.parquet", [str(tmp_path / "moved")]) as gallery:
        assert pictures_by_name(gallery) == {name: list(rgb) for name, rgb in COLOURS.items()}
    with galleries.of_predictions(tmp_path / "t.parquet", []) as gallery:
        assert gallery.read("pictures/0.jpg") is None
    table_of(["1", "2"], path=["moved/red.png", "moved/green.png"]).to_csv(tmp_path / "t.csv", index=False)
    with galleries.of_predictions(tmp_path / "t.csv", []) as gallery:
        assert pictures_by_name(gallery) == {"1": list(COLOURS["red"]), "2": list(COLOURS["green"])}


def test_a_damaged_image_is_an_error_with_its_name(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    table_of([str(tmp_path / "a.png"), "none"]).to_csv(tmp_path / "t.csv", index=False)
    with galleries.of_predictions(tmp_path / "t.csv", []) as gallery:
        number = next(i for i, (_, item) in enumerate(gallery._items) if item.image_id.endswith("a.png"))
        with pytest.raises(RunError, match=r"a\.png: not a PNG"):
            gallery.read(f"pictures/{number}.jpg")


def test_a_run_uses_its_locked_thresholds(tmp_path: pathlib.Path) -> None:
    labels = np.array([[1, 0], [0, 1]])
    table = predictions.make_table(["a", "b"], labels, np.array([[0.3, 0.1], [0.2, 0.6]]), ["x", "y"], split="test")
    predictions.write(table, tmp_path / "predictions")
    summary = {
        "protocol": "p",
        "splits": {"test": {"labels": {n: {"threshold": t} for n, t in (("x", 0.25), ("y", 0.7))}}},
    }
    (tmp_path / "results.json").write_text(json.dumps(summary))
    with galleries.of_predictions(tmp_path, []) as gallery:
        found = {item.image_id: item for _, item in gallery._items}
    assert (found["a"].predicted, found["a"].wrong) == ({"x"}, False)
    assert (found["b"].predicted, found["b"].wrong) == (set(), True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file or folder"),
        ("folder", None, "nothing that can be viewed; give the --output of"),
        ("a.txt", "x", "nothing that can be viewed"),
        ("a.csv", "x,y\n1,2\n", "no column `image_id`"),
        ("a.parquet", "no table", "not a table of predictions"),
        ("empty.csv", "", "not a table of predictions"),
        ("rows.csv", "image_id,prob_x\n", "has no image"),
    ],
)
def test_what_cannot_be_viewed_is_refused(name: str, content: str | None, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(RunError, match=message), galleries.of_predictions(tmp_path / name, []):
        pass


# --- Explanations ---------------------------------------------------------------------------------------------------


def write_explanations(folder: pathlib.Path, shape: tuple[int, int] = (60, 80), **facts: object) -> pathlib.Path:
    """As `histojax explain` writes them, of an image that is red, with a map that is highest on the right."""
    height, width = shape
    image = np.full((height, width, 3), (200, 100, 100), np.uint8)
    values = np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), shape)
    (folder / "a").mkdir(parents=True)
    for name in ("x y", "z"):
        picture = pictures.Picture(image, values, None, "a" * 40, f"{name}: 0.9", "a remark", "z")
        pictures.write_overlay(folder / "a" / f"{name.replace(' ', '_')}.png", picture)
    targets = [{"class": "x y", "probability": 0.7}, {"class": "z", "probability": 0.3}]
    record = {"image_id": "d/a.png", "folder": "a", "label": "z", "height": height, "width": width, "targets": targets}
    content = {"method": "Grad-CAM", "classes": ["x y", "z"], "target": "all", "thresholds": None, "images": [record]}
    (folder / "explanations.json").write_text(json.dumps(content | facts))
    return folder


@pytest.mark.parametrize("shape", [(60, 80), (224, 224), (400, 30), (30, 400)])
def test_the_image_and_its_map_are_cut_out_of_the_overlay(shape: tuple[int, int], tmp_path: pathlib.Path) -> None:
    gallery = galleries.of_explanations(write_explanations(tmp_path, shape))
    assert mean_colour(gallery.read("pictures/0.jpg")) == [200, 100, 100]
    content = gallery.read("pictures/0_1.jpg")
    assert content is not None
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    assert abs(found[:, :3] - found[:, :3, :1]).max() <= 12, "the left edge is grey, for there the map is zero"
    red, green, blue = found[:, -3:].reshape(-1, 3).mean(0)
    assert red > 3 * max(green, blue), "the right edge is red, where the map is highest"
    assert gallery.read("pictures/0_2.jpg") is None


@pytest.mark.parametrize(
    ("facts", "predicted", "wrong"),
    [
        ({}, {"x y"}, True),
        ({"target": "predicted"}, {"x y"}, True),
        ({"target": "z"}, None, None),
        ({"target": "predicted", "thresholds": {"x y": 0.8, "z": 0.2}}, {"z"}, False),
    ],
)
def test_the_prediction_is_known_where_it_was_explained(
    facts: dict[str, object], predicted: set[str] | None, wrong: bool | None, tmp_path: pathlib.Path
) -> None:
    ((_, item),) = galleries.of_explanations(write_explanations(tmp_path, **facts))._items
    assert (item.predicted, item.wrong) == (predicted, wrong)
    assert item.error == pytest.approx(0.7)


def test_explanations_of_earlier_versions_state_no_prediction(tmp_path: pathlib.Path) -> None:
    folder = write_explanations(tmp_path)
    content = json.loads((folder / "explanations.json").read_text())
    del content["target"], content["thresholds"]
    (folder / "explanations.json").write_text(json.dumps(content))
    ((_, item),) = galleries.of_explanations(folder)._items
    assert item.predicted is None


def test_pictures_outside_of_the_folder_are_not_shown(tmp_path: pathlib.Path) -> None:
    folder = write_explanations(tmp_path / "out")
    (folder / "a").rename(tmp_path / "outside")
    for name in ("../outside", "a", str(tmp_path / "outside")):
        content = json.loads((folder / "explanations.json").read_text())
        content["images"][0]["folder"] = name
        (folder / "explanations.json").write_text(json.dumps(content))
        if name == "a":
            (folder / "a").symlink_to(tmp_path / "outside")
        assert galleries.of_explanations(folder).read("pictures/0.jpg") is None


@pytest.mark.parametrize(
    "content", ["", "[]", '{"classes": ["x"]}', '{"classes": ["x"], "images": [{}]}', '{"classes": 3}']
)
def test_damaged_explanations_are_refused(content: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "explanations.json").write_text(content)
    with pytest.raises(RunError, match=re.escape("is damaged")):
        galleries.of_explanations(tmp_path)
