"""Thumbnails of a report: which file a row of the table means, and which part of it."""

import dataclasses
import pathlib

import cv2
import numpy as np
import pytest

from histojax.evaluation import predictions
from histojax.evaluation.report import sources
from histojax.inference.thumbnails import thumbnails

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def source_of(names: list[str], folder: pathlib.Path, tile_size: int | None = None) -> sources.Source:
    """A table of these images, of a run that cut tiles if their size is given."""
    p = np.full((len(names), 2), 0.5)
    predictions.write(predictions.make_table(names, [0] * len(names), p, ["x", "y"], split="test"), folder / "t")
    source = sources.read(folder / "t.csv")
    return source if tile_size is None else dataclasses.replace(source, config={"data": {"tiles": {"size": tile_size}}})


def write(path: pathlib.Path, *colours: tuple[int, int, int]) -> None:
    """Write an image of 16×16 squares in a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.concatenate([np.full((16, 16, 3), colour, np.uint8) for colour in colours], axis=1)
    assert cv2.imwrite(str(path), pixels[..., ::-1])


def colours(found: dict[str, bytes]) -> dict[str, tuple[int, ...]]:
    """The mean colour of each thumbnail, rounded to 0 or 255."""
    decoded = {name: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for name, data in found.items()}
    return {name: tuple((pixels.mean((0, 1))[::-1] > 127) * 255) for name, pixels in decoded.items()}


def test_tiles_with_one_name_in_several_folders_are_distinguished(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "tiles" / "tumor" / "001.png", RED)
    write(tmp_path / "tiles" / "stroma" / "001.jpg", GREEN)
    write(tmp_path / "tiles" / "stroma" / "002.png", BLUE)
    names = ["tumor/001", "stroma/001", "002", "001"]
    rows = [{"image_id": name} for name in names]
    found, problem = thumbnails(source_of(names, tmp_path), rows, [str(tmp_path / "tiles")])
    assert colours(found) == {"tumor/001": RED, "stroma/001": GREEN, "002": BLUE}
    assert problem == "some images were not found"  # 001 is two images


def test_a_cut_tile_is_cut_out_of_its_image(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "root" / "img" / "a.png", RED, GREEN, BLUE)
    write(tmp_path / "root" / "img" / "whole@x0y0.png", BLUE)
    names = ["img/a@x0y0", "img/a@x16y0", "img/whole@x0y0"]
    rows = [{"image_id": name} for name in names]
    source = source_of(names, tmp_path, tile_size=16)
    found, problem = thumbnails(source, rows, [str(tmp_path / "root")])
    assert (colours(found), problem) == (dict(zip(names, (RED, GREEN, BLUE), strict=True)), "")


@pytest.mark.parametrize(
    ("name", "tile_size", "message"),
    [
        ("img/a@x16y0", None, "img/a@x16y0: the size of its tiles is not known from a table; give the run instead"),
        ("img/a@x48y0", 16, "img/a@x48y0: the image of its name is only 48×16 pixels"),
        ("img/b@x0y0", 16, "some images were not found"),
    ],
)
def test_a_tile_that_cannot_be_cut_is_left_out_with_its_reason(
    name: str, tile_size: int | None, message: str, tmp_path: pathlib.Path
) -> None:
    write(tmp_path / "root" / "img" / "a.png", RED, GREEN, BLUE)
    source = source_of([name], tmp_path, tile_size)
    found, problem = thumbnails(source, [{"image_id": name}], [str(tmp_path / "root")])
    assert not found
    assert problem.startswith(message)
