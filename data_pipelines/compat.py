"""Every use of TFDS that is not part of its documented interface; an upgrade of TFDS breaks here or nowhere."""

import contextlib
import pathlib

import tensorflow_datasets as tfds

from histojax.core.quiet import quiet_logger


class LocalDatasetInfo(tfds.core.DatasetInfo):
    """The description of a dataset, without network access."""

    def initialize_from_bucket(self) -> None:
        """Do nothing. TFDS would ask Google for a dataset of this name, and leave an empty folder in /tmp."""


def data_dir_root(builder: tfds.core.DatasetBuilder) -> pathlib.Path:
    """Return the `data_dir` that the builder was given, above the folders of name, config and version."""
    return pathlib.Path(builder._data_dir_root)


def quiet_custom_configs() -> contextlib.AbstractContextManager[None]:
    """Silence the warning that TFDS logs, inside absl's logger, about every config that is not built in."""
    return quiet_logger("absl")
