"""The row of colour and texture alone: measured at the model's size, once, and only for real images of classes."""

import pathlib
import types

import cv2
import numpy as np
import pytest

from data_pipelines.split_spec import SplitSpec
from histojax.data.sources import open_dataset
from histojax.evaluation import predictions
from histojax.evaluation.colour import cache
from histojax.training import colours, default_config

_SLIDES = {"B_A": ("100", "200", "300", "400"), "M_DC": ("500", "600", "700", "800")}


def _write(root: pathlib.Path) -> None:
    """Write six images per slide; those of malignant slides are redder."""
    rng = np.random.default_rng(0)
    root.mkdir()
    for kind, slides in _SLIDES.items():
        for slide in slides:
            for i in range(6):
                pixels = rng.integers(0, 200, (40, 60, 3), np.uint8)
                pixels[..., 2] += 40 * (kind[0] == "M")
                cv2.imwrite(str(root / f"SOB_{kind}-14-{slide}-100-{i:03d}.png"), pixels)


def test_the_row_of_a_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTOJAX_DATA", str(tmp_path / "data"))
    _write(tmp_path / "images")
    config = default_config.base()
    config.data.root = str(tmp_path / "images")
    config.data.magnification = "100X"
    dataset = open_dataset(config.data)
    split = dataset.split(SplitSpec())
    test = split.indices("test")
    rows, p = dataset.records.take(test), np.full(len(test), 0.5)
    columns = {name: rows.column(name) for name in ("patient_id", "magnification", "case_id")}
    table = predictions.make_table(
        rows.column("image_id"), dataset.labels[test], np.stack([p, 1 - p], 1), dataset.classes, split="test", **columns
    ).sample(frac=1, random_state=0)
    sizes = []
    of_images = cache.of_images
    monkeypatch.setattr(cache, "of_images", lambda keys, read: (sizes.append(read(0).shape), of_images(keys, read))[1])
    options = {"positive": "malignant", "n_resamples": 20, "seed": 0}
    found = colours.colour_baseline(dataset, split, table, 24, **options)
    assert found is not None
    assert sizes == [(24, 24, 3)]
    assert found["n_train"] == len(split.indices("train"))
    assert found["image"]["auroc"]["value"] == 1
    assert found["differences"]["auroc"]["value"] == -0.5
    monkeypatch.setattr(cache, "of_images", of_images)
    monkeypatch.setattr(colours, "open_images", lambda _: [])  # every image is known, so none is read
    assert colours.colour_baseline(dataset, split, table, 24, **options) == found
    with pytest.raises(IndexError):  # at another size, images are measured again
        colours.colour_baseline(dataset, split, table, 12, **options)
    monkeypatch.setitem(colours.extras.MODULES, "probe", ("no_such_package",))
    assert colours.colour_baseline(dataset, split, table, 24, **options) is None


@pytest.mark.parametrize(("synthetic", "multilabel", "train"), [(True, False, 4), (False, True, 4), (False, False, 0)])
def test_other_runs_have_no_row(synthetic: bool, multilabel: bool, train: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = types.SimpleNamespace(synthetic=synthetic, directory=None)
    dataset = types.SimpleNamespace(prepared=prepared, multilabel=multilabel, labels=np.array([0, 1, 0, 1]))
    split = types.SimpleNamespace(indices=lambda side: np.arange(train if side == "train" else 0))
    monkeypatch.setattr(colours, "_features", lambda *_: pytest.fail("images were measured"))
    assert colours.colour_baseline(dataset, split, None, 24, positive=None, n_resamples=0, seed=0) is None
