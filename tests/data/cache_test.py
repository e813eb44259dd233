"""Pixels cached on disk give the same batches; a cache is written once, completely, or the error says what to do."""

import dataclasses
import os
import pathlib
import pickle
import resource
import subprocess
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.images import encode_png
from data_pipelines.synthetic.generator import SyntheticSpec, generate
from histojax.core.errors import RunError
from histojax.data.cache import CACHES, cache_path, with_cache
from histojax.data.pipeline import LoaderSpec, eval_batches, train_batches
from histojax.data.sources import Dataset, open_dataset
from histojax.data.transforms import AugmentSpec
from histojax.training import build, default_config
from tests.conftest import ROOT

IMAGES = SyntheticSpec(cases_per_subtype=(1,) * 8, images_per_patient=1, magnifications=("100X",))
SIZE = 24
SPEC = LoaderSpec(batch_size=4, image_size=SIZE, seed=0, threads=2)
CHANGES = AugmentSpec(colour_jitter=0.2, stain_jitter=0.1, blur=1.0)


def opened(folder: pathlib.Path) -> Dataset:
    config = default_config.base()
    config.data.root, config.data.prepared_dir = str(folder / "images"), str(folder / "data")
    return open_dataset(config.data)


@pytest.fixture
def dataset(tmp_path: pathlib.Path) -> Dataset:
    last = sorted(generate(tmp_path / "images", IMAGES).rglob("*.png"))[-1]
    last.write_bytes(encode_png(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)))  # one image of another size
    return opened(tmp_path)


@pytest.mark.parametrize(("kind", "workers"), [("resized", 0), ("resized", 2), ("decoded", 0)])
def test_cached_batches_are_bitwise_equal(dataset: Dataset, kind: str, workers: int) -> None:
    cached, all_indices = with_cache(dataset, kind, SIZE, 2), np.arange(len(dataset.records))
    changes = dataclasses.replace(CHANGES, crop_scale=0.5 if kind == "decoded" else 1.0)

    def batches(source: Dataset, workers: int) -> Iterator[dict[str, np.ndarray]]:
        training = train_batches(source, all_indices, dataclasses.replace(SPEC, workers=workers), changes)
        yield from (next(training) for _ in range(5))
        yield from eval_batches(source, all_indices, SPEC)

    pairs = list(zip(batches(dataset, 0), batches(cached, workers), strict=True))
    assert len(pairs) == 8
    for expected, actual in pairs:
        assert expected.keys() == actual.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(actual[key], value)


def test_cache_is_written_once_and_read_back(dataset: Dataset) -> None:
    path = cache_path(dataset, "resized", SIZE)
    small = with_cache(dataset, "resized", SIZE, 2)
    assert small.cached == path
    assert path.stat().st_size == len(dataset.records) * SIZE * SIZE * 3
    path.write_bytes(b"\7" * path.stat().st_size)
    again = with_cache(dataset, "resized", SIZE, 2)
    (batch, *_) = eval_batches(again, np.array([2]), SPEC)
    assert (batch["image"] == 7).all()
    assert with_cache(dataset, "resized", SIZE + 1, 2).cached != path


def test_damaged_image_is_named_and_no_cache_is_left(dataset: Dataset) -> None:
    shard = next(dataset.prepared.directory.glob("*.array_record*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"image SOB_\S+ of the prepared dataset: .*; delete .* to prepare it again"):
        with_cache(dataset, "resized", SIZE, 2)
    assert not list(dataset.prepared.directory.glob("*resized*"))


def test_truncated_cache_is_named(dataset: Dataset) -> None:
    small = with_cache(dataset, "resized", SIZE, 2)
    assert small.cached is not None
    small.cached.write_bytes(small.cached.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"delete {small.cached} to prepare it again"):
        list(eval_batches(small, np.arange(4), SPEC))


def test_full_disk_error_says_what_to_do(dataset: Dataset) -> None:
    path = cache_path(dataset, "resized", SIZE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(
            DataError, match=rf"{path}: the cache .* cannot be written \(File too large\): free disk space.*cache=none"
        ):
            with_cache(dataset, "resized", SIZE, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(dataset.prepared.directory.glob("*resized*"))


def test_too_little_space_is_an_error_before_decoding(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: types.SimpleNamespace(free=15 << 10))
    monkeypatch.setattr("histojax.data.cache.pixels_of", lambda element: pytest.fail("an image was decoded"))
    with pytest.raises(DataError, match=r"it needs 15 KiB, and the disk has 15 KiB free\): free disk space, choose"):
        with_cache(dataset, "resized", SIZE, 2)


def test_a_folder_of_its_own_holds_the_cache(dataset: Dataset, tmp_path: pathlib.Path) -> None:
    local = tmp_path / "local" / "scratch"
    for kind in ("resized", "decoded"):
        cached = with_cache(dataset, kind, SIZE, 2, str(local)).cached
        assert cached is not None
        assert cached.parent == local
    assert {path.suffix for path in local.iterdir() if path.name != ".lock"} == {".pixels", ".npy"}
    assert not list(dataset.prepared.directory.glob("*.pixels"))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/resized-24-\w+.pixels: .* choose another folder with data.cache_dir"):
        with_cache(dataset, "resized", SIZE, 2, str(tmp_path / "file"))


def test_a_cache_of_other_images_is_not_read(dataset: Dataset, tmp_path: pathlib.Path) -> None:
    local = str(tmp_path / "local")
    before = with_cache(dataset, "resized", SIZE, 2, local)
    root = tmp_path / "images"
    changed = sorted(root.rglob("*.png"))[0]
    changed.write_bytes(encode_png(np.full((4, 6, 3), 9, dtype=np.uint8)))
    after = opened(tmp_path)
    now = with_cache(after, "resized", SIZE, 2, local)
    assert now.cached != before.cached
    for expected, actual in zip(
        eval_batches(after, np.arange(4), SPEC), eval_batches(now, np.arange(4), SPEC), strict=True
    ):
        np.testing.assert_array_equal(actual["image"], expected["image"])
    reordered = dataclasses.replace(dataset.prepared, records=dataset.records.take([1, 0, *range(2, 9)]))
    other = dataclasses.replace(dataset, prepared=reordered)
    assert cache_path(other, "resized", SIZE) != cache_path(dataset, "resized", SIZE), (
        "the same images, in another order"
    )


def test_processes_of_a_host_write_the_cache_once(dataset: Dataset, tmp_path: pathlib.Path) -> None:
    (tmp_path / "dataset.pickle").write_bytes(pickle.dumps(dataset))
    program = (
        "import logging, pathlib, pickle, sys, time\n"
        "from histojax.data import cache\n"
        "logging.basicConfig(level=logging.INFO, force=True)\n"
        "dataset = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "write = cache._write\n"
        "cache._write = lambda *given: (time.sleep(2), write(*given))\n"  # longer than the others need to start
        f"print(cache.with_cache(dataset, 'resized', {SIZE}, 1, sys.argv[2]).cached.stat().st_ino)\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "dataset.pickle"), str(tmp_path / "local")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(words, cwd=ROOT, **pipes) for _ in range(3)]
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    assert len({out for out, _ in said}) == 1
    assert sum(err.count("images once, to") for _, err in said) == 1


def test_what_a_killed_process_left_of_a_cache_is_deleted(dataset: Dataset) -> None:
    path = cache_path(dataset, "resized", SIZE)
    old, new = (path.with_name(f".{path.name}.{pid}.tmp") for pid in (1, 2))
    for left in (old, new):
        left.touch()
    os.utime(old, (1, 1))
    with_cache(dataset, "resized", SIZE, 2)
    assert not old.exists()
    assert new.exists(), "another process may be writing it"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.cache": "ram"}, "data.cache='ram' is not one of none, resized, decoded"),
        ({"data.cache": "resized", "data.augment.crop_scale": 0.7}, "use crop_scale=1.0 or cache=decoded"),
        ({"data.cache": "resized", "data.on_bad_record": "mask"}, "use data.on_bad_record=error"),
        ({"data.cache_dir": "/scratch"}, "data.cache_dir=/scratch has no effect with data.cache=none"),
    ],
)
def test_incompatible_settings_are_refused_before_any_work(fields: dict[str, object], message: str) -> None:
    config = default_config.base()
    config.update_from_flattened_dict(fields)
    with pytest.raises(RunError, match=message):
        build.cache(config)
    assert build.cache(default_config.base()) == "none"
    assert CACHES == ("none", "resized", "decoded")
