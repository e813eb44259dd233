"""The evaluation mode of a module."""

from typing import TypeVar

from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


def eval_view(module: Module) -> Module:
    """Return the module in evaluation mode: BatchNorm uses its running statistics, and nothing is drawn at random.

    The view shares the module's variables; the module itself is not changed.
    """
    view: Module = nnx.view(module, use_running_average=True, deterministic=True, raise_if_not_found=False)
    return view
