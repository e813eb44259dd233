"""Colour and texture of images: what each number is, and that an image is measured once."""

import hashlib
import pathlib
import re

import numpy as np
import pytest
from scipy import ndimage
from skimage.color import rgb2gray, rgb2hed
from skimage.feature import local_binary_pattern
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histojax.evaluation import results, terminal
from histojax.evaluation.colour import baseline, cache, features
from tests.helpers.prediction_tables import class_table


def _image(seed: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size + 4, 3), np.uint8)


def test_each_feature_is_what_its_name_says() -> None:
    rgb = _image(0)
    found = dict(zip(features.NAMES, features.colour_and_texture(rgb), strict=True))
    assert len(found) == len(features.NAMES) == 96
    assert features.NAMES[:58] == features.COLOUR_NAMES
    assert found["green 3/16"] == pytest.approx(np.mean((rgb[..., 1] >= 48) & (rgb[..., 1] < 64)))
    hed = rgb2hed(rgb)
    assert found["hematoxylin 5 %"] == pytest.approx(np.percentile(hed[..., 0], 5), rel=1e-5)
    assert found["eosin 95 %"] == pytest.approx(np.percentile(hed[..., 1], 95), rel=1e-5)
    grey = rgb2gray(rgb)
    pattern = local_binary_pattern(np.round(grey * 255).astype(np.uint8), 8, 2, "uniform")
    assert found["lbp radius 2: 9"] == pytest.approx(np.mean(pattern == 9))
    edges = ndimage.gaussian_laplace(grey, 4)
    assert found["laplacian sigma 4: mean absolute"] == pytest.approx(np.abs(edges).mean(), rel=1e-4)
    assert found["laplacian sigma 4: deviation"] == pytest.approx(edges.std(), rel=1e-4)


def test_an_image_is_measured_once(tmp_path: pathlib.Path) -> None:
    images, read = [_image(0), _image(1), _image(0), _image(2)], []
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]

    def pixels(i: int) -> np.ndarray:
        read.append(i)
        return images[i]

    table = cache.of_images(hashes[:3], pixels, tmp_path)
    assert sorted(hashes[i] for i in read) == sorted(hashes[:2])  # an image and its copy: once
    np.testing.assert_array_equal(table[0], table[2])
    np.testing.assert_array_equal(table[1], features.colour_and_texture(images[1]))
    read.clear()
    np.testing.assert_array_equal(cache.of_images(hashes, pixels, tmp_path)[:3], table)
    assert read == [3]
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])  # damaged: measured again
    read.clear()
    cache.of_images(hashes, pixels, tmp_path)
    assert len(read) == 3


def test_classifiers_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "_TREES", 20)
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(60, 5)).astype(np.float32), np.repeat([0, 2], [45, 15])
    x[labels == 2] += 0.7
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=10_000))
    expected = pipeline.fit(x[::2], labels[::2]).predict_proba(x[1::2])
    found = baseline.logistic(x[::2], labels[::2], x[1::2], 3, C=0.1)
    np.testing.assert_allclose(found[:, [0, 2]], expected, atol=1e-5)
    np.testing.assert_array_equal(found[:, 1], 0)
    forest = RandomForestClassifier(20, class_weight="balanced", random_state=3).fit(x[::2], labels[::2])
    found = baseline.forest(x[::2], labels[::2], x[1::2], 3, seed=3)
    np.testing.assert_allclose(found[:, [0, 2]], forest.predict_proba(x[1::2]))


def test_a_model_stands_beside_colour_and_texture() -> None:
    table = class_table()
    rows = table[table["split"] == "test"].reset_index(drop=True)
    truth = (rows["label"] == "malignant").to_numpy().astype(int)
    rng = np.random.default_rng(0)
    train, labels = rng.normal(size=(40, 2)), np.arange(40) % 2
    train[:, 0] += 4 * labels
    test = rng.normal(size=(len(rows), 2)) + np.stack([3 * truth, 0 * truth], 1)
    found = baseline.beside(rows, train, labels, test, positive="malignant", n_resamples=50, seed=0)
    p = baseline.logistic(train, labels, test, 2, C=0.1)
    accuracy = float((p.argmax(1) == truth).mean())
    assert found["image"]["accuracy"]["value"] == pytest.approx(accuracy)
    own = results.summarise(rows, positive="malignant", n_resamples=0)["test"]
    for name, estimates in (("accuracy", found["image"]["accuracy"]), ("auroc", found["image"]["auroc"])):
        difference = found["differences"][name]
        assert difference["value"] == pytest.approx(own["image"][name]["value"] - estimates["value"])
        assert difference["low"] <= difference["value"] <= difference["high"]
    assert found["n_train"] == 40
    assert found["patient"]["recognition_rate"]["value"] > 0.5
    block = own | {"colour_and_texture": found}
    for text in (terminal.headline({"splits": {"test": block}}), terminal.table({"splits": {"test": block}})):
        assert "  colour and texture alone:" in text
        assert f"{found['image']['auroc']['value']:.4f}" in text
        assert re.search(rf"AUROC of the model − this +{found['differences']['auroc']['value']:.4f}  \[", text)
    assert "colour and texture" not in terminal.headline({"splits": {"test": own}})
    for low, said in ((0.001, "the model sees more than colour"), (0.0, "Nothing shows"), (-0.1, "Nothing shows")):
        found["differences"]["auroc"] = {"value": 0.1, "low": low, "high": 0.2}
        assert said in terminal.headline({"splits": {"test": block}})
    found["differences"]["auroc"] = {"value": 0.1, "low": None, "high": None}
    assert "sees more" not in terminal.headline({"splits": {"test": block}})
