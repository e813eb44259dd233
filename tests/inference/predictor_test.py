"""A Predictor predicts what the evaluation of its run predicted, however images are ordered and batched."""

import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from data_pipelines.pixels import decode
from data_pipelines.prepare import open_images
from histojax.core.errors import RunError
from histojax.data.sources import open_dataset
from histojax.distributed.sharding import Layout
from histojax.evaluation import predictions
from histojax.inference.device_batches import choose_batch_size
from histojax.inference.predictor import Predictor

pytestmark = pytest.mark.slow
Images = tuple[list[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def predictor(ldcsf_run: pathlib.Path) -> Predictor:
    return Predictor.load(ldcsf_run, batch_size=32)  # the batch size of the run's evaluation


@pytest.fixture(scope="module")
def images(predictor: Predictor, ldcsf_run: pathlib.Path) -> Images:
    """Test images as they were prepared, and the run's own probabilities of them."""
    table = predictions.read(ldcsf_run / "predictions.parquet")
    table = table[table["split"] == "test"]
    dataset = open_dataset(predictor.trained.config.data)
    positions = {name: i for i, name in enumerate(dataset.records.column("image_id").tolist())}
    stored = open_images(dataset.prepared.directory)
    pixels = [decode(stored[positions[name]]["image"]) for name in table["image_id"]]
    return pixels, table[[f"prob_{name}" for name in predictor.classes]].to_numpy(np.float32)


def test_predictions_equal_those_of_the_evaluation(predictor: Predictor, images: Images) -> None:
    pixels, expected = images
    assert len(pixels) > 8
    # The evaluation of the run used one device, this process has four: sums are taken in another order.
    np.testing.assert_allclose(predictor.predict(pixels), expected, atol=1e-5)
    assert predictor.thresholds is not None
    assert list(predictor.thresholds) == list(predictor.classes)


def test_neither_order_nor_batch_size_matters(ldcsf_run: pathlib.Path, predictor: Predictor, images: Images) -> None:
    pixels, _ = images
    expected = predictor.predict(pixels)
    np.testing.assert_array_equal(predictor.predict(pixels[::-1]), expected[::-1])
    np.testing.assert_allclose(Predictor.load(ldcsf_run, batch_size=4).predict(pixels[:7]), expected[:7], atol=1e-5)
    assert predictor.predict([]).shape == (0, len(predictor.classes))


def test_a_table_has_a_row_per_image(predictor: Predictor, images: Images) -> None:
    pixels, _ = images
    table = predictor.table(pixels[:3], ["a", "b<i>", "c"])
    assert table.index.tolist() == ["a", "b<i>", "c"]
    expected = predictor.predict(pixels[:3])
    assert predictor.thresholds is not None
    for i, (name, threshold) in enumerate(predictor.thresholds.items()):
        assert table[f"prob_{name}"].tolist() == expected[:, i].tolist()
        assert table[f"predicted_{name}"].tolist() == (expected[:, i] >= threshold).astype(int).tolist()
    assert "b&lt;i&gt;" in table._repr_html_()  # what a notebook shows
    assert predictor.table(pixels[:2]).index.tolist() == [0, 1]
    with pytest.raises(RunError, match="1 names"):
        predictor.table(pixels[:2], ["a"])


def test_a_notebook_shows_what_the_model_is(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repr(predictor).startswith("Predictor(model: ldcsf, classes: interstitial (from 0.")
    monkeypatch.setattr(predictor, "classes", ("<b>a</b>", *predictor.classes[1:]))
    page = predictor._repr_html_()
    assert "<tr><th>classes</th><td>&lt;b&gt;a&lt;/b&gt;, necrosis (from 0." in page
    assert f"{predictor.image_size} × {predictor.image_size} pixels" in page
    assert f"<tr><th>checkpoint</th><td>{predictor.digest}</td></tr>" in page


def test_a_stream_keeps_the_order_and_reads_only_a_little_ahead(predictor: Predictor) -> None:
    size = predictor.image_size
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8) for n in (32, 5, 32, 1, 32, 17)]
    num_taken = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal num_taken
        for batch in batches:
            num_taken += 1
            yield batch

    stream = predictor.stream(source())
    results = [next(stream)]
    assert num_taken == 3
    results += list(stream)
    assert [len(rows) for rows in results] == [32, 5, 32, 1, 32, 17]
    np.testing.assert_array_equal(np.concatenate(results), predictor.predict(np.concatenate(batches)))


def test_wrong_shapes_types_and_batch_sizes_are_rejected(predictor: Predictor, ldcsf_run: pathlib.Path) -> None:
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(RunError, match=r"uint8 .*\(height, width, 3\)"):
            predictor.predict([wrong])
    with pytest.raises(ValueError, match="expected 1 to 32 images"):
        next(predictor.stream([np.zeros((33, predictor.image_size, predictor.image_size, 3), np.uint8)]))
    with pytest.raises(RunError, match="--batch_size: batch size"):
        Predictor.load(ldcsf_run, batch_size=3)


@pytest.mark.parametrize(("devices", "expected"), [(1, 8), (3, 9), (4, 8)])
def test_without_a_batch_size_the_devices_decide(devices: int, expected: int) -> None:
    assert choose_batch_size(Layout(1, jax.devices()[:devices]), None) == expected
