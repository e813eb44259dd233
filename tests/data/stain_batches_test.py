"""Batches with stain normalisation: after the cache, of what the model sees, and said where it was not possible."""

import pickle

import cv2
import numpy as np
import pytest

from data_pipelines.pixels import resize
from data_pipelines.stain import StainNormalizer
from histojax.data.cache import cache_path, with_cache
from histojax.data.pipeline import eval_batches, train_batches
from tests.helpers.stream import OFF, ON, SIZE, SPEC, spec

PALE = StainNormalizer("reinhard", (70.0, 10.0, -5.0, 12.0, 6.0, 5.0))
DARK = StainNormalizer("reinhard", (40.0, 30.0, -20.0, 9.0, 8.0, 7.0))


def images(batches, count=3):
    return np.concatenate([batch["image"] for batch, _ in zip(batches, range(count), strict=False)])


def test_every_image_is_normalised_at_the_size_that_the_model_sees(dataset, all_indices, folder):
    names = dataset.records.column("image_id")
    training = train_batches(dataset, all_indices, spec(stain=PALE), OFF)
    for batch in (next(training), *eval_batches(dataset, all_indices, spec(stain=PALE))):
        for image, index in zip(batch["image"], batch["index"], strict=True):
            stored = cv2.imread(str(folder / "root" / f"{names[index]}.png"))[..., ::-1]
            np.testing.assert_array_equal(image, PALE.apply(resize(stored, SIZE))[0])


def test_a_batch_of_evaluation_says_which_images_were_left_alone(dataset, all_indices, monkeypatch):
    seen = iter(range(100))

    def every_other(normalizer, image):
        return image, next(seen) % 2 == 0

    monkeypatch.setattr(StainNormalizer, "apply", every_other)
    batches = list(eval_batches(dataset, all_indices, spec(stain=PALE, threads=1)))
    flags = np.concatenate([batch["normalised"] for batch in batches])
    assert flags.dtype == bool
    assert sorted(flags) == [False] * 6 + [True] * 6
    assert "normalised" not in next(eval_batches(dataset, all_indices, SPEC))


@pytest.mark.parametrize("kind", ["resized", "decoded"])
def test_runs_with_other_references_share_pixels_and_mix_nothing(dataset, all_indices, kind):
    cached = with_cache(dataset, kind, SIZE, 1)
    before = cache_path(dataset, kind, SIZE).read_bytes()
    found = [images(eval_batches(cached, all_indices, spec(stain=stain))) for stain in (PALE, DARK, None, PALE)]
    for stain, got in zip((PALE, DARK, None, PALE), found, strict=True):
        np.testing.assert_array_equal(got, images(eval_batches(dataset, all_indices, spec(stain=stain))))
    assert (found[0] != found[1]).any()
    assert (found[0] != found[2]).any()
    assert cache_path(dataset, kind, SIZE).read_bytes() == before


def test_the_stream_with_normalisation_is_a_function_of_its_position(dataset, all_indices):
    made = spec(stain=PALE)
    assert pickle.loads(pickle.dumps(made)) == made  # for workers
    whole = images(train_batches(dataset, all_indices, made, ON), 5)
    later = images(train_batches(dataset, all_indices, spec(stain=PALE, threads=1), ON, start=3), 2)
    np.testing.assert_array_equal(whole[12:], later)
    assert (whole != images(train_batches(dataset, all_indices, SPEC, ON), 5)).any()
