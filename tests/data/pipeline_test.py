"""The stream of batches: a function of seed and position, whoever computes it, and every image once."""

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
from histojax.data.pipeline import LoaderSpec, eval_batches, train_batches
from histojax.data.sources import Dataset, open_dataset
from histojax.data.transforms import AugmentSpec

SIZE = 8
OFF = AugmentSpec(flips=False, quarter_turns=False)
ON = AugmentSpec(crop_scale=0.5, colour_jitter=0.2, stain_jitter=0.1, blur=1.0)
SPEC = LoaderSpec(batch_size=4, image_size=SIZE, seed=0, threads=2)

# Eight malignant and four benign images of six patients.
NAMES = [
    f"SOB_{label}-14-{patient}-100-{number:03}.png"
    for label, patients in (("B_A", ("100", "200")), ("M_DC", ("300", "400", "500AB", "600")))
    for patient in patients
    for number in (1, 2)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture
def dataset(folder, write_images) -> Dataset:
    root = folder / "root"
    if not root.exists():  # prepared for the first test, found again by the others
        write_images(root, NAMES)
    return open_dataset(
        {
            "pipeline": "breakhis",
            "root": str(root),
            "magnification": "100X",
            "on_bad_image": "error",
            "prepared_dir": str(folder / "prepared"),
            "task": "binary",
        }
    )


@pytest.fixture
def everything(dataset) -> np.ndarray:
    return np.arange(len(dataset.records))


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


def spec(**fields):
    return dataclasses.replace(SPEC, **fields)


def test_the_dataset_is_the_one_that_these_tests_speak_of(dataset):
    assert dataset.classes == ("benign", "malignant")
    assert np.bincount(dataset.labels).tolist() == [4, 8]
    assert len(set(dataset.records.column("patient_id"))) == 6


# ---- Batches --------------------------------------------------------------------------------------------------------

TYPES = {"image": np.uint8, "label": np.int32, "mask": np.bool_, "index": np.int64}


@pytest.mark.parametrize("side", ["train", "eval"])
def test_a_batch_is_as_the_contract_says(dataset, everything, side):
    made = train_batches(dataset, everything, SPEC, ON) if side == "train" else eval_batches(dataset, everything, SPEC)
    batch = next(iter(made))
    assert {key: value.dtype for key, value in batch.items()} == TYPES
    assert batch["image"].shape == (4, SIZE, SIZE, 3)
    assert {batch[key].shape for key in ("label", "mask", "index")} == {(4,)}
    np.testing.assert_array_equal(batch["label"], dataset.labels[batch["index"]])
    assert batch["mask"].all()


def test_pixels_are_those_of_the_file_that_the_index_names(dataset, everything, folder):
    names = dataset.records.column("image_id")
    training = take(train_batches(dataset, everything, SPEC, OFF), 3)
    for batch in (*training, *eval_batches(dataset, everything, SPEC)):
        for image, index in zip(batch["image"], batch["index"], strict=True):
            stored = cv2.imread(str(folder / "root" / f"{names[index]}.png"))[..., ::-1]
            np.testing.assert_array_equal(image, resize(stored, SIZE))


def test_what_is_kept_was_read_once_and_to_the_end(dataset, everything, monkeypatch):
    reads = []
    monkeypatch.setattr(pipeline, "eval_batches", lambda *given: reads.append(1) or eval_batches(*given))
    expected = list(eval_batches(dataset, everything, SPEC))
    kept = pipeline.CachedBatches(dataset, everything, SPEC)
    next(iter(kept))  # cut short
    for _ in range(3):
        assert_equal(list(kept), expected)
    assert len(reads) == 2
    monkeypatch.setattr(pipeline, "_CACHE_BYTES", len(everything) * SIZE**2 * 3 - 1)
    too_many = pipeline.CachedBatches(dataset, everything, SPEC)
    for _ in range(2):
        assert_equal(list(too_many), expected)
    assert len(reads) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling": "even"}, r"data\.sampling='even' is not one of natural, balanced"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(fields, message):
    with pytest.raises(DataError, match=message):
        spec(**fields)


# ---- The training stream --------------------------------------------------------------------------------------------


def test_threads_and_workers_do_not_change_the_stream(dataset, everything):
    expected = take(train_batches(dataset, everything, spec(threads=1), ON), 7)
    for fields in ({"threads": 8}, {"workers": 2}, {"workers": 3}):
        with contextlib.closing(train_batches(dataset, everything, spec(**fields), ON)) as batches:
            assert_equal(take(batches, 7), expected)
    with contextlib.closing(train_batches(dataset, everything, spec(workers=2), ON, start=3)) as batches:
        assert_equal(take(batches, 4), expected[3:])


@pytest.mark.parametrize("sampling", ["natural", "balanced"])
@pytest.mark.parametrize("start", [1, 3, 10])
def test_a_stream_goes_on_where_it_stopped(dataset, everything, sampling, start):
    made = spec(sampling=sampling)
    whole = take(train_batches(dataset, everything, made, ON), start + 4)
    assert_equal(take(train_batches(dataset, everything, made, ON, start=start), 4), whole[start:])


def test_a_stream_is_a_function_of_the_seed(dataset, everything):
    one, other = (take(train_batches(dataset, everything, spec(seed=seed), ON), 3) for seed in (0, 1))
    assert (joined(one) != joined(other)).any()
    assert (joined(one, "image") != joined(other, "image")).any()


def test_every_epoch_has_every_image_once_in_another_order(dataset, everything):
    epochs = joined(take(train_batches(dataset, everything, SPEC, OFF), 9)).reshape(3, 12)
    for epoch in epochs:
        assert sorted(epoch) == everything.tolist()
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_an_epoch_that_does_not_divide_runs_on_into_the_next(dataset, everything):
    stream = joined(take(train_batches(dataset, everything[:7], SPEC, OFF), 7))
    assert [sorted(epoch) for epoch in stream.reshape(4, 7)] == [list(range(7))] * 4


def test_only_the_given_images_are_seen(dataset):
    wanted = np.array([1, 4, 5, 9, 11])
    assert set(joined(take(train_batches(dataset, wanted, SPEC, OFF), 5))) == set(wanted)


def test_augmentation_differs_between_epochs_and_images(dataset, everything):
    batches = take(train_batches(dataset, everything, SPEC, ON), 6)
    index, images = joined(batches), joined(batches, "image")
    for i in everything:
        first, second = images[index == i]
        assert (first != second).any()
    # One image in every place: each has an augmentation of its own.
    same = take(train_batches(dataset, np.array([0]), SPEC, ON), 1)[0]["image"]
    assert len({image.tobytes() for image in same}) == 4


@pytest.mark.parametrize("sampling", ["natural", "balanced"])
def test_processes_together_have_the_global_batch(dataset, everything, sampling):
    made = spec(sampling=sampling)
    whole = take(train_batches(dataset, everything, made, ON), 6)
    shares = [
        take(train_batches(dataset, everything, dataclasses.replace(made, rows=rows), ON), 6)
        for rows in ((0, 1), (2, 3))
    ]
    for batch, one, other in zip(whole, *shares, strict=True):
        assert one["image"].shape == other["image"].shape == (2, SIZE, SIZE, 3)
        for key in batch:  # augmentations and all
            np.testing.assert_array_equal(np.concatenate([one[key], other[key]]), batch[key])


@pytest.mark.parametrize("rows", [(0, 3), (2,)])
def test_a_processs_share_goes_on_where_it_stopped(dataset, everything, rows):
    made = spec(rows=rows)
    whole = take(train_batches(dataset, everything, made, ON), 6)
    assert_equal(take(train_batches(dataset, everything, made, ON, start=2), 4), whole[2:])


def test_balanced_sampling_has_every_class_equally_often(dataset, everything):
    batches = take(train_batches(dataset, everything, spec(sampling="balanced"), OFF), 12)
    for batch in batches:
        assert np.bincount(batch["label"]).tolist() == [2, 2]
    index = joined(batches)
    # 24 of each class: the 4 benign images six times, the 8 malignant ones three times.
    assert np.bincount(index).tolist() == np.where(dataset.labels == 0, 6, 3).tolist()


def test_balanced_sampling_needs_an_image_of_every_class(dataset, everything):
    with pytest.raises(DataError, match=r"data\.sampling=balanced: no training image of class 'benign'"):
        next(train_batches(dataset, everything[dataset.labels == 1], spec(sampling="balanced"), OFF))


# ---- Evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [12, 11, 9, 4, 3, 1])
def test_evaluation_has_every_image_once_in_order_and_masks_the_padding(dataset, count):
    indices = np.random.default_rng(0).permutation(12)[:count]
    batches = list(eval_batches(dataset, indices, SPEC))
    assert len(batches) == -(-count // 4)
    index, mask = joined(batches), joined(batches, "mask")
    assert index[mask].tolist() == indices.tolist()
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < count)
    assert (index[~mask] == -1).all()
    np.testing.assert_array_equal(joined(batches, "label")[mask], dataset.labels[indices])


def test_processes_share_the_evaluation_and_run_equally_many_steps(dataset):
    indices = np.arange(9)
    whole = list(eval_batches(dataset, indices, SPEC))
    shares = [list(eval_batches(dataset, indices, spec(rows=rows))) for rows in ((0, 1), (2, 3))]
    assert len(shares[0]) == len(shares[1]) == len(whole) == 3
    for batch, one, other in zip(whole, *shares, strict=True):
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([one[key], other[key]]), batch[key])


# ---- The source -----------------------------------------------------------------------------------------------------


def test_a_source_pickles_opened_or_not(dataset, everything):
    source = pipeline._source(dataset, everything)
    before = pickle.dumps(source)
    expected = source[3]  # opens the files
    after = pickle.dumps(source)
    assert len(after) == len(before)  # what is open stays here
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


def test_padding_of_a_source_is_masked(dataset):
    got = pipeline._source(dataset, np.array([2, -1]))[1]
    assert (got["index"], got["mask"]) == (-1, False)


class Damaged:
    """A prepared dataset, one of whose images is not what was stored."""

    def __init__(self, images, position, spoil):
        self._images, self._position, self._spoil = images, position, spoil

    def __getitem__(self, position):
        stored = self._images[position]
        return {"image": self._spoil(stored["image"])} if position == self._position else stored


SPOILT = {
    "no image": lambda data: b"not an image",
    "empty": lambda data: b"",
    "header only": lambda data: data[:40],
    "flipped signature": lambda data: b"\x00" + data[1:],
}


@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.parametrize("side", ["train", "eval"])
def test_a_damaged_stored_image_is_named(dataset, everything, monkeypatch, name, side):
    images = data_prepare.open_images(dataset.prepared.directory)
    monkeypatch.setattr("histojax.data.image_source.open_images", lambda _: Damaged(images, 5, SPOILT[name]))
    image_id = dataset.records[5].image_id
    batches = (
        eval_batches(dataset, everything, SPEC) if side == "eval" else train_batches(dataset, everything, SPEC, ON)
    )
    with pytest.raises(DataError, match=f"image {image_id} of the prepared dataset: .*prepare (it|the data) again"):
        take(batches, 3)


@pytest.mark.parametrize("damage", ["flipped byte", "cut in half", "deleted"])
def test_a_damaged_file_is_told_with_the_remedy(dataset, tmp_path, damage):
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


def test_a_source_is_what_it_was_made_of(dataset):
    source = ImageSource(dataset.prepared.directory, np.array([7]), dataset.labels, ["x"] * 12)
    assert len(source) == 1
    assert source[0]["label"] == dataset.labels[7]
    assert source[0]["name"] == "x"


@pytest.mark.parametrize("name", SPOILT)
def test_a_damaged_image_may_be_left_out_of_the_learning(dataset, everything, monkeypatch, caplog, name):
    images = data_prepare.open_images(dataset.prepared.directory)
    monkeypatch.setattr("histojax.data.image_source.open_images", lambda _: Damaged(images, 5, SPOILT[name]))
    with caplog.at_level(logging.WARNING, logger="histojax"):
        batches = take(train_batches(dataset, everything, spec(on_bad_record="mask"), ON), 3)
    index, mask, pixels = (joined(batches, key) for key in ("index", "mask", "image"))
    assert sorted(index) == everything.tolist()
    assert index[~mask].tolist() == [5]
    assert (pixels[~mask] == 128).all()
    assert any(
        f"skipping unreadable image: image {dataset.records[5].image_id}" in record.message for record in caplog.records
    )
    with pytest.raises(DataError, match=r"prepare (it|the data) again"):  # what is evaluated is never left out
        take(eval_batches(dataset, everything, spec(on_bad_record="mask")), 3)
