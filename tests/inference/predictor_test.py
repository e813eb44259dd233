"""A checkpoint asked about images says what the evaluation of its run said, whatever comes together with what."""

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from data_pipelines.pixels import decode
from histojax.core.errors import RunError
from histojax.data.sources import open_dataset
from histojax.evaluation import predictions
from histojax.inference.predictor import Predictor
from tests.helpers.programs import small_ldcsf_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return small_ldcsf_run(tmp_path_factory.mktemp("predictor"))


@pytest.fixture(scope="module")
def predictor(run: pathlib.Path) -> Predictor:
    return Predictor.load(run, batch_size=32)  # the batch size of the run's evaluation


@pytest.fixture(scope="module")
def images(predictor: Predictor, run: pathlib.Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Test images as they were prepared, and the run's own probabilities of them."""
    table = predictions.read(run / "predictions.parquet")
    table = table[table["split"] == "test"]
    dataset = open_dataset(predictor.trained.config.data)
    position = {name: i for i, name in enumerate(dataset.records.column("image_id").tolist())}
    from data_pipelines.prepare import open_images

    stored = open_images(dataset.prepared.directory)
    pixels = [decode(stored[position[name]]["image"]) for name in table["image_id"]]
    return pixels, table[[f"prob_{name}" for name in predictor.classes]].to_numpy(np.float32)


def test_it_says_what_the_evaluation_said(predictor: Predictor, images: tuple[list[np.ndarray], np.ndarray]) -> None:
    pixels, wanted = images
    assert len(pixels) > 8
    # The evaluation of the run used one device, this process has four: sums in another order.
    np.testing.assert_allclose(predictor.predict(pixels), wanted, atol=1e-5)
    assert predictor.thresholds is not None
    assert list(predictor.thresholds) == list(predictor.classes)


def test_neither_order_nor_batch_matters(
    run: pathlib.Path, predictor: Predictor, images: tuple[list[np.ndarray], np.ndarray]
) -> None:
    pixels, _ = images
    whole = predictor.predict(pixels)
    np.testing.assert_array_equal(predictor.predict(pixels[::-1]), whole[::-1])
    np.testing.assert_allclose(Predictor.load(run, batch_size=4).predict(pixels[:7]), whole[:7], atol=1e-5)
    assert predictor.predict([]).shape == (0, len(predictor.classes))


def test_a_table_has_a_row_an_image(predictor: Predictor, images: tuple[list[np.ndarray], np.ndarray]) -> None:
    pixels, _ = images
    table = predictor.table(pixels[:3], ["a", "b<i>", "c"])
    assert table.index.tolist() == ["a", "b<i>", "c"]
    whole = predictor.predict(pixels[:3])
    assert predictor.thresholds is not None
    for i, (name, cut) in enumerate(predictor.thresholds.items()):
        assert table[f"prob_{name}"].tolist() == whole[:, i].tolist()
        assert table[f"predicted_{name}"].tolist() == (whole[:, i] >= cut).astype(int).tolist()
    assert "b&lt;i&gt;" in table._repr_html_()  # what a notebook shows
    assert predictor.table(pixels[:2]).index.tolist() == [0, 1]
    with pytest.raises(RunError, match="1 names of 2 images"):
        predictor.table(pixels[:2], ["a"])


def test_a_stream_keeps_the_order_and_only_looks_a_little_ahead(predictor: Predictor) -> None:
    size = predictor.image_size
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8) for n in (32, 5, 32, 1, 32, 17)]
    taken = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal taken
        for batch in batches:
            taken += 1
            yield batch

    stream = predictor.stream(source())
    found = [next(stream)]
    assert taken == 3
    found += list(stream)
    assert [len(rows) for rows in found] == [32, 5, 32, 1, 32, 17]
    np.testing.assert_array_equal(np.concatenate(found), predictor.predict(np.concatenate(batches)))


def test_what_is_no_image_is_told(predictor: Predictor, run: pathlib.Path) -> None:
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(RunError, match=r"uint8 of shape \(height, width, 3\) is RGB"):
            predictor.predict([wrong])
    with pytest.raises(ValueError, match="at most"):
        next(predictor.stream([np.zeros((33, predictor.image_size, predictor.image_size, 3), np.uint8)]))
    with pytest.raises(RunError, match="--batch_size: batch size=3 does not divide among 4 devices"):
        Predictor.load(run, batch_size=3)
