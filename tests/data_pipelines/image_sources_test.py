"""A dataset of one's own, registered from outside the package: the README's example, word for word."""

import dataclasses
import importlib
import pathlib
import re
import sys
from collections.abc import Iterator
from importlib import metadata

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.image_folder import ImageSource, OwnImage, register, sources
from data_pipelines.pixels import decode
from data_pipelines.prepare import open_images
from histojax.core import plugins
from histojax.data.sources import open_dataset
from tests.conftest import ROOT
from tests.data_pipelines.image_folder_test import picture, settings

EXAMPLE = re.findall(
    r"```python\n(.*?)```", (ROOT / "data_pipelines/image_folder/README.md").read_text(encoding="utf-8"), re.DOTALL
)[0]


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.SOURCES, "items", {})
    monkeypatch.setattr(sources.SOURCES, "_loaded", False)


def write_cores(path: pathlib.Path, grades: str = "1212") -> np.ndarray:
    pixels = np.random.default_rng(len(grades)).integers(0, 256, (len(grades), 8, 9, 3), dtype=np.uint8)
    np.savez(path, pixels=pixels, grade=list(grades), patient=[f"P{i // 2}" for i in range(len(grades))])
    return pixels


@pytest.fixture
def module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_cores.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield "my_cores"
    sys.modules.pop("my_cores", None)


def test_a_source_of_ones_own_is_prepared_like_files(tmp_path: pathlib.Path, module: str) -> None:
    path = tmp_path / "cores.npz"
    pixels = write_cores(path)
    plugins.load([module])
    fields = {"images.source": "cores"}
    dataset = open_dataset(settings(path, tmp_path / "prepared", **fields))
    assert dataset.classes == ("1", "2")
    rows = {record.image_id: record for record in dataset.records}
    assert sorted(rows) == ["core_0", "core_1", "core_2", "core_3"]
    assert (rows["core_2"].patient_id, rows["core_3"].label) == ("P1", "2")
    stored = open_images(dataset.prepared.directory)
    order = dataset.records.column("image_id").tolist().index("core_1")
    np.testing.assert_array_equal(decode(stored[order]["image"]), pixels[1])
    write_cores(path, "121212")  # another content is another dataset
    assert len(open_dataset(settings(path, tmp_path / "prepared", **fields)).records) == 6


def test_an_installed_package_provides_sources(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ImageSource("atlas", lambda root: [OwnImage(str(i), "ab"[i], lambda i=i: picture(i)) for i in (0, 1)])

    @dataclasses.dataclass
    class Point:
        name: str

        def load(self) -> ImageSource:
            return source

    monkeypatch.setattr(
        metadata, "entry_points", lambda group: [Point("atlas")] if group == "histojax.datasets" else []
    )
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "atlas.bin").write_bytes(b"")
    data = settings(tmp_path / "root", tmp_path / "prepared", **{"images.source": "atlas"})
    assert len(open_dataset(data).records) == 2
    with pytest.raises(DataError, match=r"data\.images\.source: unknown source 'altas' \(did you mean 'atlas'\?\)"):
        sources.find_source("altas")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], r"data\.images\.source=own: has no image in .*root"),
        (
            [OwnImage("1", "a", lambda: b""), OwnImage("1", "b", lambda: b"")],
            r"image 1: has the name '1', which is not",
        ),
        ([OwnImage("", "a", lambda: b"")], r"image 0: has the name '', which is not unique"),
        ([OwnImage("1", "", lambda: b"")], r"data\.images\.source=own, image 0: has no label"),
        ([OwnImage("1", "a", lambda: b"")], r"every image is of the class 'a', .* expected them in the source"),
        (
            [OwnImage("1", "a", lambda: b"GIF89a"), OwnImage("2", "b", lambda: picture(1))],
            r"1 bad image:\n  1: not a PNG file \(it starts with 'GIF89a'\)",
        ),
    ],
)
def test_what_a_source_may_not_yield(tmp_path: pathlib.Path, images: list[OwnImage], message: str) -> None:
    register(ImageSource("own", lambda root: images))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "own.bin").write_bytes(b"")
    with pytest.raises(DataError, match=f"(?s){message}"):
        open_dataset(settings(tmp_path / "root", tmp_path / "prepared", **{"images.source": "own"}))


def test_names_are_checked(tmp_path: pathlib.Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match=r"data\.images\.source: unknown source 'cores'; sources: none\. The field"):
        open_dataset(settings(tmp_path / "root", tmp_path / "prepared", **{"images.source": "cores"}))
    one = register(ImageSource("own", lambda root: []))
    assert register(one) is one
    with pytest.raises(ValueError, match="a source named 'own' is already registered"):
        register(ImageSource("own", lambda root: []))
