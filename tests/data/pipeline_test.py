"""The stream of batches depends on seed and position only, and has every image once per epoch."""

import contextlib
import dataclasses
import itertools
import logging
import pickle
import shutil

import cv2
import numpy as np
import pytest

from data_pipelines import prepare as data_prepare
from data_pipelines.errors import DataError
from data_pipelines.pixels import resize
from histojax.data import pipeline
from histojax.data.image_source import ImageSource
from histojax.data.pipeline import eval_batches, train_batches
from tests.helpers.stream import OFF, ON, SIZE, SPEC, spec


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_equal(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def joined(batches, key="index"):
    return np.concatenate([batch[key] for batch in batches])


def test_dataset_has_the_classes_that_these_tests_assume(dataset):
    assert dataset.classes == ("benign", "malignant")
    assert np.bincount(dataset.labels).tolist() == [4, 8]
    assert len(set(dataset.records.column("patient_id"))) == 6


# ---- Batches --------------------------------------------------------------------------------------------------------

TYPES = {"image": np.uint8, "label": np.int32, "mask": np.bool_, "index": np.int64}


@pytest.mark.parametrize("side", ["train", "eval"])
def test_batch_has_the_documented_keys_types_and_shapes(dataset, all_indices, side):
    if side == "train":
        batches = train_batches(dataset, all_indices, SPEC, ON)
    else:
        batches = eval_batches(dataset, all_indices, SPEC)
    batch = next(iter(batches))
    assert {key: value.dtype for key, value in batch.items()} == TYPES
    assert batch["image"].shape == (4, SIZE, SIZE, 3)
    assert {batch[key].shape for key in ("label", "mask", "index")} == {(4,)}
    np.testing.assert_array_equal(batch["label"], dataset.labels[batch["index"]])
    assert batch["mask"].all()


def test_pixels_match_the_file_of_the_index(dataset, all_indices, folder):
    names = dataset.records.column("image_id")
    training = take(train_batches(dataset, all_indices, SPEC, OFF), 3)
    for batch in (*training, *eval_batches(dataset, all_indices, SPEC)):
        for image, index in zip(batch["image"], batch["index"], strict=True):
            stored = cv2.imread(str(folder / "root" / f"{names[index]}.png"))[..., ::-1]
            np.testing.assert_array_equal(image, resize(stored, SIZE))


def test_cached_batches_are_read_once_and_completely(dataset, all_indices, monkeypatch):
    reads = []
    monkeypatch.setattr(pipeline, "eval_batches", lambda *args: reads.append(1) or eval_batches(*args))
    expected = list(eval_batches(dataset, all_indices, SPEC))
    cached = pipeline.CachedBatches(dataset, all_indices, SPEC)
    next(iter(cached))  # an incomplete pass is not cached
    for _ in range(3):
        assert_equal(list(cached), expected)
    assert len(reads) == 2
    monkeypatch.setattr(pipeline, "_CACHE_BYTES", len(all_indices) * SIZE**2 * 3 - 1)
    too_large = pipeline.CachedBatches(dataset, all_indices, SPEC)
    for _ in range(2):
        assert_equal(list(too_large), expected)
    assert len(reads) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling": "even"}, r"data\.sampling='even' is not one of natural, balanced"),
    ],
)
def test_invalid_spec_is_refused(fields, message):
    with pytest.raises(DataError, match=message):
        spec(**fields)


# ---- The training stream --------------------------------------------------------------------------------------------


def test_threads_and_workers_do_not_change_the_stream(dataset, all_indices):
    expected = take(train_batches(dataset, all_indices, spec(threads=1), ON), 7)
    for fields in ({"threads": 8}, {"workers": 3}):  # two workers from the start: in cache_test
        with contextlib.closing(train_batches(dataset, all_indices, spec(**fields), ON)) as batches:
            assert_equal(take(batches, 7), expected)
    with contextlib.closing(train_batches(dataset, all_indices, spec(workers=2), ON, start=3)) as batches:
        assert_equal(take(batches, 4), expected[3:])


@pytest.mark.parametrize("sampling", ["natural", "balanced"])
@pytest.mark.parametrize("start", [1, 3, 10])
def test_stream_resumes_at_any_batch(dataset, all_indices, sampling, start):
    loader = spec(sampling=sampling)
    full = take(train_batches(dataset, all_indices, loader, ON), start + 4)
    assert_equal(take(train_batches(dataset, all_indices, loader, ON, start=start), 4), full[start:])


def test_stream_is_a_function_of_the_seed(dataset, all_indices):
    first, second = (take(train_batches(dataset, all_indices, spec(seed=seed), ON), 3) for seed in (0, 1))
    assert (joined(first) != joined(second)).any()
    assert (joined(first, "image") != joined(second, "image")).any()


def test_every_epoch_has_every_image_once_in_a_new_order(dataset, all_indices):
    epochs = joined(take(train_batches(dataset, all_indices, SPEC, OFF), 9)).reshape(3, 12)
    for epoch in epochs:
        assert sorted(epoch) == all_indices.tolist()
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batch_may_cross_the_end_of_an_epoch(dataset, all_indices):
    stream = joined(take(train_batches(dataset, all_indices[:7], SPEC, OFF), 7))
    assert [sorted(epoch) for epoch in stream.reshape(4, 7)] == [list(range(7))] * 4


def test_only_the_given_images_are_used(dataset):
    wanted = np.array([1, 4, 5, 9, 11])
    assert set(joined(take(train_batches(dataset, wanted, SPEC, OFF), 5))) == set(wanted)


def test_a_batch_larger_than_the_training_set_is_said(dataset, caplog):
    for size, said in ((5, False), (6, True)):
        caplog.clear()
        train_batches(dataset, np.arange(5), dataclasses.replace(SPEC, batch_size=size), OFF).close()
        assert ("holds its 5 images more than once; use --config.train.batch_size=5 or less" in caplog.text) == said


def test_augmentation_differs_between_epochs_and_images(dataset, all_indices):
    batches = take(train_batches(dataset, all_indices, SPEC, ON), 6)
    index, images = joined(batches), joined(batches, "image")
    for i in all_indices:
        first, second = images[index == i]
        assert (first != second).any()
    # The same image in every row of a batch: each row has its own augmentation.
    same = take(train_batches(dataset, np.array([0]), SPEC, ON), 1)[0]["image"]
    assert len({image.tobytes() for image in same}) == 4


@pytest.mark.parametrize("sampling", ["natural", "balanced"])
def test_processes_together_hold_the_global_batch(dataset, all_indices, sampling):
    loader = spec(sampling=sampling)
    full = take(train_batches(dataset, all_indices, loader, ON), 6)
    parts = [
        take(train_batches(dataset, all_indices, dataclasses.replace(loader, rows=rows), ON), 6)
        for rows in ((0, 1), (2, 3))
    ]
    for batch, one, other in zip(full, *parts, strict=True):
        assert one["image"].shape == other["image"].shape == (2, SIZE, SIZE, 3)
        for key in batch:  # with the same augmentations
            np.testing.assert_array_equal(np.concatenate([one[key], other[key]]), batch[key])


@pytest.mark.parametrize("rows", [(0, 3), (2,)])
def test_rows_of_one_process_resume_at_any_batch(dataset, all_indices, rows):
    loader = spec(rows=rows)
    full = take(train_batches(dataset, all_indices, loader, ON), 6)
    assert_equal(take(train_batches(dataset, all_indices, loader, ON, start=2), 4), full[2:])


def test_balanced_sampling_draws_classes_equally_often(dataset, all_indices):
    batches = take(train_batches(dataset, all_indices, spec(sampling="balanced"), OFF), 12)
    for batch in batches:
        assert np.bincount(batch["label"]).tolist() == [2, 2]
    index = joined(batches)
    # 24 per class: the 4 benign images six times each, the 8 malignant ones three times.
    assert np.bincount(index).tolist() == np.where(dataset.labels == 0, 6, 3).tolist()


def test_balanced_sampling_needs_an_image_of_every_class(dataset, all_indices):
    with pytest.raises(DataError, match=r"data\.sampling=balanced: no training image of class 'benign'"):
        next(train_batches(dataset, all_indices[dataset.labels == 1], spec(sampling="balanced"), OFF))


# ---- Evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [12, 11, 9, 4, 3, 1])
def test_evaluation_has_every_image_once_in_order_and_masks_padding(dataset, count):
    indices = np.random.default_rng(0).permutation(12)[:count]
    batches = list(eval_batches(dataset, indices, SPEC))
    assert len(batches) == -(-count // 4)
    index, mask = joined(batches), joined(batches, "mask")
    assert index[mask].tolist() == indices.tolist()
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < count)
    assert (index[~mask] == -1).all()
    np.testing.assert_array_equal(joined(batches, "label")[mask], dataset.labels[indices])


def test_processes_divide_the_evaluation_into_equal_numbers_of_steps(dataset):
    indices = np.arange(9)
    full = list(eval_batches(dataset, indices, SPEC))
    parts = [list(eval_batches(dataset, indices, spec(rows=rows))) for rows in ((0, 1), (2, 3))]
    assert len(parts[0]) == len(parts[1]) == len(full) == 3
    for batch, one, other in zip(full, *parts, strict=True):
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([one[key], other[key]]), batch[key])


# ---- The source -----------------------------------------------------------------------------------------------------


def test_source_can_be_pickled_before_and_after_opening(dataset, all_indices):
    source = pipeline._source(dataset, all_indices)
    before = pickle.dumps(source)
    expected = source[3]  # opens the files
    after = pickle.dumps(source)
    assert len(after) == len(before)  # open files are not pickled
    for copy in (pickle.loads(before), pickle.loads(after)):
        assert len(copy) == 12
        got = copy[3]
        assert got["image"] == expected["image"]
        assert (got["label"], got["index"], got["mask"], got["name"]) == (
            dataset.labels[3],
            3,
            True,
            dataset.records[3].image_id,
        )


def test_source_masks_padding(dataset):
    got = pipeline._source(dataset, np.array([2, -1]))[1]
    assert (got["index"], got["mask"]) == (-1, False)


class Damaged:
    """A prepared dataset that returns a damaged image at one position."""

    def __init__(self, images, position, damage_image):
        self._images, self._position, self._spoil = images, position, damage_image

    def __getitem__(self, position):
        stored = self._images[position]
        return {"image": self._spoil(stored["image"])} if position == self._position else stored


DAMAGES = {
    "no image": lambda data: b"not an image",
    "empty": lambda data: b"",
    "header only": lambda data: data[:40],
    "flipped signature": lambda data: b"\x00" + data[1:],
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("side", ["train", "eval"])
def test_damaged_stored_image_is_named(dataset, all_indices, monkeypatch, name, side):
    images = data_prepare.open_images(dataset.prepared.directory)
    monkeypatch.setattr("histojax.data.image_source.open_images", lambda _: Damaged(images, 5, DAMAGES[name]))
    image_id = dataset.records[5].image_id
    batches = (
        eval_batches(dataset, all_indices, SPEC) if side == "eval" else train_batches(dataset, all_indices, SPEC, ON)
    )
    with pytest.raises(DataError, match=f"image {image_id} of the prepared dataset: .*prepare (it|the data) again"):
        take(batches, 3)


@pytest.mark.parametrize("damage", ["flipped byte", "cut in half", "deleted"])
def test_damaged_file_error_says_what_to_delete(dataset, tmp_path, damage):
    copy = shutil.copytree(dataset.prepared.directory, tmp_path / "copy")
    (file,) = (path for path in copy.iterdir() if "array_record" in path.name)
    content = bytearray(file.read_bytes())
    content[100] ^= 0xFF  # in the header of the first image's record
    file.write_bytes(content if damage == "flipped byte" else content[: len(content) // 2])
    if damage == "deleted":
        file.unlink()
    broken = dataclasses.replace(dataset, prepared=dataclasses.replace(dataset.prepared, directory=copy))
    message = f"image {dataset.records[0].image_id} of the prepared dataset: .*delete {copy} to prepare it again"
    with pytest.raises(DataError, match=message):
        take(eval_batches(broken, np.array([0]), SPEC), 1)


def test_source_selects_images_labels_and_names(dataset):
    source = ImageSource(dataset.prepared.directory, np.array([7]), dataset.labels, ["x"] * 12)
    assert len(source) == 1
    assert source[0]["label"] == dataset.labels[7]
    assert source[0]["name"] == "x"


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_image_can_be_masked_in_training_only(dataset, all_indices, monkeypatch, caplog, name):
    images = data_prepare.open_images(dataset.prepared.directory)
    monkeypatch.setattr("histojax.data.image_source.open_images", lambda _: Damaged(images, 5, DAMAGES[name]))
    with caplog.at_level(logging.WARNING, logger="histojax"):
        batches = take(train_batches(dataset, all_indices, spec(on_bad_record="mask"), ON), 3)
    index, mask, pixels = (joined(batches, key) for key in ("index", "mask", "image"))
    assert sorted(index) == all_indices.tolist()
    assert index[~mask].tolist() == [5]
    assert (pixels[~mask] == 128).all()
    assert any(
        f"skipping unreadable image: image {dataset.records[5].image_id}" in record.message for record in caplog.records
    )
    with pytest.raises(DataError, match=r"prepare (it|the data) again"):  # evaluation never skips an image
        take(eval_batches(dataset, all_indices, spec(on_bad_record="mask")), 3)
