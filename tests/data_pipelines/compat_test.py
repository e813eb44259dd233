"""The parts of TFDS that are used beyond its documented interface."""

import logging
import pathlib

import pytest
import tensorflow_datasets as tfds

from data_pipelines import compat
from data_pipelines.breakhis.breakhis_dataset_builder import Builder


@pytest.fixture
def builder(tmp_path: pathlib.Path) -> Builder:
    return Builder(config="40x", data_dir=tmp_path / "data", file_format="array_record")


def test_data_root_is_the_given_folder(builder: Builder, tmp_path: pathlib.Path) -> None:
    assert compat.data_dir_root(builder) == tmp_path / "data"
    assert pathlib.Path(builder.data_dir).is_relative_to(tmp_path / "data")


def test_no_dataset_is_looked_up_in_the_cloud(builder: Builder) -> None:
    assert hasattr(tfds.core.DatasetInfo, "initialize_from_bucket")  # otherwise the override has no effect
    assert "initialize_from_bucket" in vars(compat.LocalDatasetInfo)
    assert type(builder.info) is compat.LocalDatasetInfo


def test_warnings_about_custom_configs_are_silenced(caplog: pytest.LogCaptureFixture) -> None:
    with compat.quiet_custom_configs():
        logging.getLogger("absl").warning("custom config")
    assert not caplog.records
