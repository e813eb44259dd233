"""Synthetic tiles: labels that match the pixels, reproducible bytes, patients with slides."""

import csv
import hashlib
import json
import pathlib

import numpy as np
import pytest

from data_pipelines.liver_tiles.scan import scan
from data_pipelines.liver_tiles.spec import LIVER_LABELS, TilesSpec
from data_pipelines.synthetic import tiles
from data_pipelines.synthetic.tiles import MIN_SHARE, TilesSyntheticSpec, generate_tiles

SMALL = TilesSyntheticSpec(patients=4, tiles_per_slide=5, size=40)


def digest(root: pathlib.Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return generate_tiles(tmp_path_factory.mktemp("tiles") / "small", SMALL)


def rows(root: pathlib.Path) -> list[dict[str, str]]:
    with open(root / "tiles.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_lists_every_tile_with_patient_and_slide(small: pathlib.Path) -> None:
    table = rows(small)
    assert list(table[0]) == ["path", *LIVER_LABELS, "patient_id", "slide_id"]
    assert {row["path"] for row in table} == {name for name in digest(small) if name.endswith(".png")}
    assert len({row["patient_id"] for row in table}) == 4
    assert len({row["slide_id"] for row in table}) == 5  # every fourth patient has two
    assert len(table) == 25


def test_the_same_spec_gives_the_same_bytes_and_another_seed_does_not(
    small: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert digest(generate_tiles(tmp_path / "again", SMALL)) == digest(small)
    other = digest(generate_tiles(tmp_path / "other", TilesSyntheticSpec(1, 4, 5, 40)))
    assert other.keys() == digest(small).keys()
    assert not {v for k, v in other.items() if k.endswith("png")} & set(digest(small).values())


def test_a_label_covers_at_least_min_share_of_its_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    regions = tiles._regions
    seen = []

    def spy(rng: np.random.Generator, size: int) -> np.ndarray:
        seen.append(regions(rng, size))
        return seen[-1]

    monkeypatch.setattr(tiles, "_regions", spy)
    for tile in list(tiles._tiles(TilesSyntheticSpec()))[:60]:
        image, present = tiles._render(TilesSyntheticSpec(size=48), tile)
        assert image.shape == (48, 48, 3)
        np.testing.assert_allclose(seen[-1].sum(0), 1)
        assert present == tuple((seen[-1].mean((1, 2)) >= MIN_SHARE).tolist())
    assert {sum(region.mean() >= MIN_SHARE for region in maps) for maps in seen} == {1, 2, 3}


def test_scanning_gives_the_labels_of_the_table(small: pathlib.Path) -> None:
    found = scan(small, TilesSpec())
    assert [tile.record.label.split("+") for tile in found.tiles] == [
        [name for name in LIVER_LABELS if row[name] == "1"] for row in sorted(rows(small), key=lambda row: row["path"])
    ]
    assert json.loads((small / "SYNTHETIC.json").read_text())["synthetic"] is True


def test_a_folder_with_other_files_and_a_small_size_are_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.png").write_text("")
    with pytest.raises(ValueError, match="nothing was changed"):
        generate_tiles(tmp_path, SMALL)
    with pytest.raises(ValueError, match="size is 8"):
        TilesSyntheticSpec(size=8)
