"""Modules of the user that register models or datasets."""

import importlib


def import_module(name: str) -> None:
    """Import a module that a config names; an empty name does nothing.

    Only an importable module name is accepted, not the path of a file: a checkpoint stores this field, and loading
    somebody else's checkpoint must not run a file that came with it.

    Raises:
      ValueError: not a module name, or the module cannot be imported.
    """
    if not name:
        return
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{name!r} is not the name of a Python module, such as my_models or lab.models")
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name!r} cannot be imported ({error}); install it, or add its folder to PYTHONPATH"
        ) from error
