"""One of our models and its PyTorch twin with the same random values, and comparisons of what the two compute."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import torch
from flax import nnx

from histojax import models
from histojax.distributed.sharding import path_of
from histojax.models.rngs import seeded
from tests.helpers.modules import call, flat

Arrays = dict[str, np.ndarray]
Draw = Callable[[str, tuple[int, ...], np.random.Generator], np.ndarray]
# Regular expressions and their substitutions, applied to a path in order.
Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
Loss = Callable[[Any, Any], Any]  # (logits, targets) -> mean loss

# The last rules of every table: layer1/0/bn1/mean -> layer1.0.bn1.running_mean.
_LEAVES: Rules = ((r"/(kernel|scale)$", "/weight"), (r"/(mean|var)$", r"/running_\1"), (r"/", "."))
# Dense layers of ours that are 1×1 convolutions in the twins.
_POINTWISE = re.compile(r"attention/fc\d/|pointwise/")
# Buffers of the twins that our models do not have: counters that nothing reads, indices computed from the window.
_COMPUTED = ("num_batches_tracked", "relative_position_index")


class Pair(NamedTuple):
    """One of our models and its twin with the same values.

    Attributes:
      model: our model; random keys are zeros, because every drop rate is 0.
      twin: the PyTorch module.
      rules: our paths -> the twin's names.
    """

    model: nnx.Module
    twin: torch.nn.Module
    rules: Rules


class Step(NamedTuple):
    """What a training step computes, before the update.

    Attributes:
      loss: mean loss of the batch.
      gradients: gradient of every parameter by name, and "x", that of the images (b, h, w, 3).
      stats: batch statistics after the step by name.
    """

    loss: float
    gradients: Arrays
    stats: Arrays


def to_torch(x: np.ndarray) -> torch.Tensor:
    """Images (b, h, w, c) as a tensor (b, c, h, w)."""
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def channels_last(outputs: Mapping[str, np.ndarray]) -> Arrays:
    """Outputs with feature maps (b, c, h, w) -> (b, h, w, c); logits stay."""
    return {name: array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for name, array in outputs.items()}


def torch_name(path: str, rules: Rules) -> str:
    """Our path -> the twin's name."""
    for pattern, replacement in (*rules, *_LEAVES):
        path = re.sub(pattern, replacement, path)
    return path


def torch_layout(path: str, value: Any) -> np.ndarray:
    """Kernels HWIO -> OIHW and (i, o) -> (o, i), or (o, i, 1, 1) for a 1×1 convolution."""
    array = np.asarray(value)
    if not path.endswith("kernel"):
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T[:, :, None, None] if _POINTWISE.search(path) else array.T


def in_torch(arrays: Mapping[str, Any], rules: Rules) -> Arrays:
    """Our arrays by path -> the same by the twin's names and in its layouts."""
    return {torch_name(path, rules): torch_layout(path, value) for path, value in arrays.items()}


def load(twin: torch.nn.Module, arrays: Mapping[str, Any], rules: Rules) -> None:
    """Copy our parameters and statistics into the twin; one without values, on the meta device, shares their memory.

    Raises:
      AssertionError: an array of either side has no counterpart.
      RuntimeError: a shape differs.
    """
    state = {name: torch.from_numpy(array) for name, array in in_torch(arrays, rules).items()}
    on_meta = next(twin.parameters()).is_meta
    missing, unexpected = twin.load_state_dict(state, strict=False, assign=on_meta)
    missing = [name for name in missing if not name.endswith(_COMPUTED)]
    assert not missing, missing
    assert not unexpected, unexpected


def normed_values(branch: float = 1.0) -> Draw:
    """Draw at scales that keep the activations of convolutions, batch norms and ReLUs near one.

    Args:
      branch: scale of the last batch norm of each bottleneck; below one, the sum of many blocks does not explode.
    """

    def draw(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        if path.endswith("kernel"):
            return rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
        if path.endswith("scale"):
            return (branch if "bn3" in path else 1.0) * rng.uniform(0.5, 1.5, shape)
        if path.endswith("var"):
            return rng.uniform(0.5, 1.5, shape)
        return 0.2 * rng.normal(size=shape)

    return draw


def attention_values(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw at scales where attention, its position bias and its mask matter, even for values that start at zero."""
    if path.endswith("kernel"):
        return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
    if path.endswith(("scale", "var")):
        return rng.uniform(0.5, 1.5, shape)
    return (1.0 if "position" in path else 0.2) * rng.normal(size=shape)


def zero_keys(rest: Any) -> Any:
    """Zeros in place of random keys, which nothing uses at drop rate 0."""
    return jax.tree.map(lambda leaf: np.zeros((), np.uint32), nnx.as_pure(rest))


def make_pair(
    make: Callable[[], nnx.Module],
    twin: torch.nn.Module,
    draw: Draw,
    rules: Rules = (),
    *,
    training: bool = False,
    dtype: Any = np.float32,
) -> Pair:
    """Draw every parameter and statistic and give both models the same values.

    Args:
      make: builds our model; runs abstractly.
      twin: the PyTorch module, in float32.
      draw: (path, shape, generator) -> value.
      rules: our paths -> the twin's names.
      training: both in train mode; otherwise both in evaluation mode.
      dtype: float32 or float64, which needs `jax.enable_x64`.
    """
    model = nnx.view(
        nnx.eval_shape(make), use_running_average=not training, deterministic=not training, raise_if_not_found=False
    )
    graphdef, *kinds, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    rng = np.random.default_rng(1)

    def value(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return draw(path_of(path), leaf.shape, rng).astype(dtype, copy=False)

    params, stats = (jax.tree_util.tree_map_with_path(value, nnx.as_pure(kind)) for kind in kinds)
    twin = twin.double() if dtype == np.float64 else twin
    load(twin, flat(params) | flat(stats), rules)
    return Pair(nnx.merge(graphdef, params, stats, zero_keys(rest)), twin.train(training), rules)


def num_parameters(name: str, **options: Any) -> int:
    """Number of parameters of our model with 1000 classes."""
    model = nnx.eval_shape(lambda: models.create(name, num_classes=1000, rngs=seeded(default=0), **options))
    return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def num_torch_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def torch_logits(module: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """Logits (b, k) of images (b, h, w, 3)."""
    with torch.no_grad():
        output = module(to_torch(x))
    return getattr(output, "logits", output).numpy()


def our_outputs(model: Any, x: np.ndarray, features: str) -> dict[str, jax.Array]:
    """Every feature map of our model by name, and "logits", computed from the map named `features`."""

    def forward(model: Any, x: jax.Array) -> dict[str, jax.Array]:
        maps = model.feature_maps(x)
        return maps | {"logits": model.classify(maps[features])}

    return call(model, x, forward)


def torch_outputs(module: torch.nn.Module, parts: Mapping[str, torch.nn.Module], x: np.ndarray) -> Arrays:
    """Outputs of the named parts of a module, in the layout that they have there, and "logits"."""
    outputs: Arrays = {}

    def hook(name: str) -> Callable[..., None]:
        # A copy, because a ReLU in place may follow.
        return lambda part, inputs, output: outputs.update({name: output.detach().clone().numpy()})

    handles = [part.register_forward_hook(hook(name)) for name, part in parts.items()]
    outputs["logits"] = torch_logits(module, x)
    for handle in handles:
        handle.remove()
    return outputs


def relative_error(ours: Any, theirs: np.ndarray) -> float:
    """Largest difference by the largest value of an output, which must be neither constant nor exploding."""
    assert ours.shape == theirs.shape
    assert 1e-2 < theirs.std() < 1e2
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def assert_outputs_equal(ours: Mapping[str, Any], theirs: Mapping[str, np.ndarray], title: object = "") -> None:
    """Compare named outputs; each may differ by 1e-4 of its largest value. `title` is printed with the errors."""
    assert ours.keys() == theirs.keys()
    errors = {name: relative_error(ours[name], theirs[name]) for name in theirs}
    print(title, {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) <= 1e-4, errors


def assert_gradients_equal(ours: Arrays, theirs: Arrays, without_effect: Collection[str] = ()) -> None:
    """Compare named gradients; each may differ by less than a thousandth of its norm.

    Args:
      ours: gradients by name.
      theirs: the same of the twin.
      without_effect: names whose gradients are zero but for rounding; these are compared by the largest norm of all.
    """
    assert ours.keys() == theirs.keys()
    norms = {name: np.linalg.norm(array) for name, array in theirs.items()}
    largest = max(norms.values())
    assert {name for name, norm in norms.items() if norm < 1e-12 * largest} == set(without_effect)
    errors = {}
    for name, array in theirs.items():
        assert ours[name].shape == array.shape, name
        errors[name] = np.linalg.norm(ours[name] - array) / (largest if name in without_effect else norms[name])
    worst = sorted(errors.items(), key=lambda item: -item[1])
    name, error = worst[0]
    print(f"gradients: {error:.1e} at {name}")
    assert error < 1e-3, worst[:5]


def assert_running_means_equal(ours: Arrays, theirs: Arrays) -> None:
    """Compare batch statistics after a step by name; means only, because variances differ by n / (n - 1)."""
    assert ours.keys() == theirs.keys()
    for name in theirs:
        if name.endswith("running_mean"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-9, err_msg=name)


def cross_entropy(logits: jax.Array, labels: np.ndarray) -> jax.Array:
    """Mean cross-entropy of logits (b, k) and class indices (b,)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def loss_function(graphdef: Any, loss: Loss = cross_entropy) -> Callable[..., tuple[jax.Array, Any]]:
    """Return a function (params, x, y, stats, rest) -> (loss, new statistics) of a model that was split."""

    def loss_and_stats(params: Any, x: Any, y: Any, stats: Any, rest: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graphdef, params, stats, rest)
        return loss(model(x), y), nnx.as_pure(nnx.state(model, nnx.BatchStat))

    return loss_and_stats


def split(model: nnx.Module) -> tuple[Any, Any, Any, Any]:
    """Return (graphdef, params, stats, rest), the last three as trees of arrays."""
    graphdef, *parts = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    return graphdef, *(nnx.as_pure(part) for part in parts)


def our_step(model: nnx.Module, x: np.ndarray, y: np.ndarray, loss: Loss = cross_entropy) -> Step:
    """Loss, gradients and statistics of our model, by path; the model keeps its mode."""
    graphdef, params, stats, rest = split(model)
    step = jax.jit(jax.value_and_grad(loss_function(graphdef, loss), (0, 1), has_aux=True))
    (value, new_stats), (gradients, dx) = step(params, x, y, stats, rest)
    assert value.dtype == x.dtype
    gradients = {path: np.asarray(gradient) for path, gradient in flat(gradients).items()} | {"x": np.asarray(dx)}
    return Step(float(value), gradients, {path: np.asarray(leaf) for path, leaf in flat(new_stats).items()})


def torch_step(
    module: torch.nn.Module, x: np.ndarray, y: np.ndarray, loss: Loss = torch.nn.functional.cross_entropy
) -> Step:
    """Loss, gradients and statistics of a PyTorch module, by its names; the module keeps its mode."""
    images = to_torch(x).requires_grad_()
    value = loss(module(images), torch.from_numpy(y))
    value.backward()
    gradients = {name: p.grad.numpy() for name, p in module.named_parameters()}
    dx = channels_last({"x": images.grad.numpy()})
    stats = {name: b.numpy() for name, b in module.named_buffers() if "running_" in name}
    return Step(value.item(), gradients | dx, stats)


def assert_steps_equal(
    pair: Pair,
    x: np.ndarray,
    y: np.ndarray,
    our_loss: Loss = cross_entropy,
    torch_loss: Loss = torch.nn.functional.cross_entropy,
    without_effect: Collection[str] = (),
) -> tuple[Step, Step]:
    """Compare loss, gradients and running means of a step in float64, where 1e-9 is a mistake and not rounding.

    Args:
      pair: the models.
      x: images (b, h, w, 3) in float64.
      y: targets.
      our_loss: loss of our logits.
      torch_loss: the same of the twin's.
      without_effect: see `assert_gradients_equal`.

    Returns:
      The steps of our model and of the twin, both by the twin's names.
    """
    ours, theirs = our_step(pair.model, x, y, our_loss), torch_step(pair.twin, x, y, torch_loss)
    ours = Step(ours.loss, in_torch(ours.gradients, pair.rules), in_torch(ours.stats, pair.rules))
    assert abs(ours.loss - theirs.loss) < 1e-9
    assert_gradients_equal(ours.gradients, theirs.gradients, without_effect)
    assert_running_means_equal(ours.stats, theirs.stats)
    return ours, theirs
