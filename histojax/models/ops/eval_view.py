"""The evaluation mode of a module."""

from typing import Any, TypeVar

from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


def eval_view(module: Module, only: Any = ...) -> Module:
    """Return the module in evaluation mode: BatchNorm uses its running statistics, and nothing is drawn at random.

    The view shares the module's variables; the module itself is not changed.

    Args:
      module: the module.
      only: an `nnx` filter of the submodules that change their mode, such as a function of path and module.
    """
    view: Module = nnx.view(module, only=only, use_running_average=True, deterministic=True, raise_if_not_found=False)
    return view
