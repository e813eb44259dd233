"""Named experiments, config files, and the fields that a command line overrides.

An experiment is named as `NAME[:VARIANT]`, a file of the folder `configs` (of the checkout, or of the installed
package), or as `PATH.py[:VARIANT]`.
"""

import ast
import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from histojax.core.directories import expand_user
from histojax.core.errors import RunError
from histojax.core.suggestions import closest, did_you_mean
from histojax.training import default_config

Override = tuple[str, str | None]  # a field's path, such as train.epochs, and its text; None: a switch without a value

_PACKAGE = pathlib.Path(__file__).parents[1]
_TRUE, _FALSE = ("true", "t", "1", "yes"), ("false", "f", "0", "no")


def folder() -> pathlib.Path:
    """Return the folder of the named experiments."""
    # A wheel carries the folder inside the package. Beside an installed package, `configs` would be somebody else's.
    shipped = _PACKAGE / "configs"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """List the named experiments."""
    return sorted(path.stem for path in folder().glob("*.py") if not path.stem.startswith("_"))


def locate(name: str) -> tuple[pathlib.Path, str]:
    """Find the config file of an experiment.

    Args:
      name: NAME or PATH.py, each with `:VARIANT` if wanted.

    Returns:
      The file, and the variant ("" if none is given).

    Raises:
      RunError: there is no such experiment or file.
    """
    place, _, variant = name.partition(":")
    if "/" not in place and not place.endswith(".py"):
        known = names()
        if place not in known:
            raise RunError(
                f"--config={name}: no experiment is named '{place}'{did_you_mean(place, known)}. "
                f"Known experiments: {', '.join(known)}. A config file of your own is given by its path, FILE.py"
            )
        return folder() / f"{place}.py", variant
    path = expand_user(place)
    if not path.is_file():
        hint = did_you_mean(path.name, [other.name for other in path.parent.glob("*.py")])
        raise RunError(f"--config={name}: {place}: no such config file{hint}")
    return path, variant


def load(name: str) -> tuple[ModuleType, str]:
    """Import the config file of an experiment.

    Args:
      name: as `locate` takes it.

    Returns:
      The module, whose `get_config(variant)` builds experiments, and the variant.

    Raises:
      RunError: there is no such experiment, or its file cannot be imported.
    """
    path, variant = locate(name)
    module_name = f"histojax_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise RunError(f"--config={name}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RunError(_failure(path, error)) from error
    if not hasattr(module, "get_config"):
        raise RunError(f"{path}: the file defines no function get_config")
    return module, variant


def read(name: str, overrides: Sequence[Override] = ()) -> ConfigDict:
    """Build an experiment, with fields that the command line overrides.

    Args:
      name: as `locate` takes it.
      overrides: fields and their values as text, applied in order.

    Returns:
      The config, locked: its fields can be set, and none can be added.

    Raises:
      RunError: there is no such experiment, variant or field, a value does not fit its field, or a field that is
        overridden has no effect.
    """
    config = build(name)
    changed = override(config, overrides)
    default_config.check_values(config)
    default_config.check_used(config, changed)
    return config


def build(name: str) -> ConfigDict:
    """Build an experiment as its file has it.

    Args:
      name: as `locate` takes it.

    Returns:
      The config, locked.

    Raises:
      RunError: there is no such experiment or variant, or its fields are not those of `default_config.base`.
    """
    module, variant = load(name)
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except ValueError as error:  # a variant that the file does not know
        raise RunError(f"{name}: {error}") from error
    except Exception as error:
        raise RunError(_failure(pathlib.Path(str(module.__file__)), error)) from error
    if not isinstance(config, ConfigDict):
        raise RunError(f"{name}: get_config returns {type(config).__name__}, not an ml_collections.ConfigDict")
    _check_fields(name, config, default_config.base())
    return config.lock()


def _check_fields(name: str, config: ConfigDict, base: ConfigDict, path: str = "") -> None:
    """Check that a config file changes fields and adds or drops none.

    Raises:
      RunError: it does.
    """
    for key in config:
        if key not in base:
            raise RunError(f"{name}: it sets {path}{key}, which is no field{did_you_mean(key, list(base))}")
    for key, value in base.items():
        if key not in config or isinstance(config[key], ConfigDict) != isinstance(value, ConfigDict):
            raise RunError(f"{name}: it lacks {path}{key}; let get_config start from default_config.base()")
        # A group that is empty in `base`, such as model.options, takes any fields.
        if isinstance(value, ConfigDict) and len(value):
            _check_fields(name, config[key], value, f"{path}{key}.")


def fields_named(name: str, *, nearly: bool = False) -> list[str]:
    """Return the fields that a bare name means: epochs is train.epochs, data_root is data.root.

    Args:
      name: the last parts of a field's path, joined by "_".
      nearly: return the fields with the closest name instead.

    Returns:
      Of several fields with that name, those in the outermost groups.
    """
    paths = list(_paths(default_config.base()))
    groups = {path.rpartition(".")[0] for path in paths}
    named: dict[str, list[str]] = {}
    for parts in (path.split(".") for path in paths if path not in groups):
        for i in range(len(parts)):
            named.setdefault("_".join(parts[i:]), []).append(".".join(parts))
    found = named.get(closest(name, named) if nearly else name, [])
    return [path for path in found if path.count(".") == min(other.count(".") for other in found)]


def override(config: ConfigDict, overrides: Sequence[Override]) -> dict[str, Any]:
    """Set fields of a config from text, each in the type that the field has.

    Args:
      config: is changed.
      overrides: fields and their values as text, applied in order.

    Returns:
      The values by field.

    Raises:
      RunError: there is no such field, a value does not fit its field, or one override hides an earlier one.
    """
    values: dict[str, Any] = {}
    for field, text in overrides:
        if hidden := [earlier for earlier in values if earlier.startswith(field + ".")]:
            raise RunError(f"--config.{field} would undo --config.{hidden[0]}: give it before that one")
        parent, name = _find(config, field)
        values[field] = _typed(field, text, parent[name])
        parent[name] = values[field]
    return values


def _find(config: ConfigDict, field: str) -> tuple[ConfigDict, str]:
    """Return the part of a config that holds a field, and the field's name in it."""
    *groups, name = field.split(".")
    part, path = config, ""
    for key in (*groups, name):
        if not isinstance(part, ConfigDict):
            raise RunError(f"--config.{field}: {path} is a value ({part!r}) and has no fields")
        if key not in part:
            raise RunError(_unknown_field(config, part, path, key, field))
        parent, part, path = part, part[key], f"{path}.{key}".lstrip(".")
    return parent, name


def _unknown_field(config: ConfigDict, part: ConfigDict, path: str, key: str, field: str) -> str:
    hint = did_you_mean(key, list(part))
    if not hint:  # most likely right, and in another group
        elsewhere = [other for other in _paths(config) if other.rpartition(".")[2] == field.rpartition(".")[2]]
        hint = f" (did you mean {' or '.join(elsewhere)}?)" if elsewhere else ""
    where = f"{path} has no field '{key}'" if path else f"the config has no field '{key}'"
    return f"--config.{field}: {where}{hint}. Fields{f' of {path}' if path else ''}: {', '.join(part) or 'none'}"


def _paths(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield prefix + key
        if isinstance(config[key], ConfigDict):
            yield from _paths(config[key], f"{prefix}{key}.")


def _typed(field: str, text: str | None, current: Any) -> Any:
    """Convert the text of an override to the type of the field's current value."""
    if isinstance(current, bool):
        return _converted(field, "true" if text is None else text, current, _boolean, "true or false")
    if text is None:
        raise RunError(f"--config.{field} needs a value, such as --config.{field}={current}")
    if isinstance(current, int):
        return _converted(field, text, current, _integer, "a whole number")
    if isinstance(current, float):
        return _converted(field, text, current, float, "a number")
    if isinstance(current, str):
        return text
    if isinstance(current, tuple | list):  # a saved config has lists
        return _converted(field, text, current, _tuple, "a tuple, such as \"(1, 2)\" or \"('a', 'b')\"")
    if isinstance(current, ConfigDict):
        fields = f"the fields {', '.join(current)}" if len(current) else "empty"
        return _converted(field, text, fields, _mapping, "a mapping, such as \"{'name': 1}\"")
    return _literal(text)


def _converted(field: str, text: str, current: Any, convert: Callable[[str], Any], kind: str) -> Any:
    try:
        return convert(text)
    except (ValueError, SyntaxError, TypeError) as error:
        raise RunError(f"--config.{field}={text}: the value must be {kind}; in the config it is {current}") from error


def _boolean(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ValueError(text)
    return text.lower() in _TRUE


def _integer(text: str) -> int:
    return int(text, 0) if text[:2].lower() in ("0x", "0o") else int(text)


def _tuple(text: str) -> tuple[Any, ...]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if "," in text or " " in text:  # several elements, of which some lack quotes
            raise
        value = text  # one word without quotes
    if isinstance(value, (tuple, list)):
        return tuple(value)
    return (value,)


def _mapping(text: str) -> ConfigDict:
    value = ast.literal_eval(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return ConfigDict(value)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _failure(path: pathlib.Path, error: Exception) -> str:
    """Say where in a config file an exception was raised, without a traceback."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}:{error.lineno}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = f":{frames[-1].lineno}" if frames else ""
    return f"{path}{line}: {type(error).__name__}: {error}"
