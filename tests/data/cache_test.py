"""Pixels cached on disk give the same batches; a cache is written once, completely, or the error says what to do."""

import dataclasses
import pathlib
import resource
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
    path = cache_path(dataset.prepared.directory, "resized", SIZE)
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
    path = cache_path(dataset.prepared.directory, "resized", SIZE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(
            DataError, match=rf"{path}: cannot be written \(File too large\): free disk space.*cache=none"
        ):
            with_cache(dataset, "resized", SIZE, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(dataset.prepared.directory.glob("*resized*"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.cache": "ram"}, "data.cache='ram' is not one of none, resized, decoded"),
        ({"data.cache": "resized", "data.augment.crop_scale": 0.7}, "use crop_scale=1.0 or cache=decoded"),
        ({"data.cache": "resized", "data.on_bad_record": "mask"}, "use data.on_bad_record=error"),
    ],
)
def test_incompatible_settings_are_refused_before_any_work(fields: dict[str, object], message: str) -> None:
    config = default_config.base()
    config.update_from_flattened_dict(fields)
    with pytest.raises(RunError, match=message):
        build.cache(config)
    assert build.cache(default_config.base()) == "none"
    assert CACHES == ("none", "resized", "decoded")
