"""Config files as the verbs of `histojax` read them: PATH or PATH:VARIANT, as `--config` of a run."""

import importlib.util
import pathlib
from types import ModuleType

from ml_collections import ConfigDict

from histojax.core.errors import RunError


def load(path: str) -> tuple[ModuleType, str]:
    """The module of a config file, whose `get_config(variant)` makes experiments, and the variant behind the colon.

    Raises:
      RunError: no such file.
    """
    file, _, variant = path.partition(":")
    spec = importlib.util.spec_from_file_location("config_file", file)
    if spec is None or spec.loader is None or not pathlib.Path(file).is_file():
        raise RunError(f"{file}: no such config file (--config)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, variant


def read(path: str) -> ConfigDict:
    """The experiment that a config file describes.

    Raises:
      RunError: no such file, a variant that it does not know.
    """
    module, variant = load(path)
    try:
        return module.get_config(variant)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error
