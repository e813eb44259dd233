"""A small prepared dataset for the tests of the stream of batches."""

import numpy as np
import pytest

from histojax.data.sources import Dataset, open_dataset

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
    if not root.exists():  # the first test of a module prepares it, the others reuse it
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
def all_indices(dataset) -> np.ndarray:
    return np.arange(len(dataset.records))
