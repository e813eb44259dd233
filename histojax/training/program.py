"""The compiled functions of a run: initialisation, one training step, prediction, evaluation."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from histojax.core.errors import RunError
from histojax.core.suggestions import did_you_mean
from histojax.distributed.sharding import Layout
from histojax.models.ops.eval_view import eval_view
from histojax.models.ops.normalise import normalise
from histojax.models.ops.sharded_call import sharded_calls
from histojax.models.rngs import seeded
from histojax.training.accumulate import StepSums, accumulate
from histojax.training.augmentations import augment
from histojax.training.ema import update_average
from histojax.training.mixing import mix
from histojax.training.optimizer import OptimizerSpec, begins_with, make_optimizer, path_begins, plan
from histojax.training.per_device import per_device_step
from histojax.training.state import ModelState, TrainState, split_module
from histojax.training.tasks import Task

Batch = dict[str, jax.Array]
Numbers = dict[str, Any]
MakeModel = Callable[[nnx.Rngs], nnx.Module]

BATCH_NORMS = ("global", "device")


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """Settings of a training step.

    Attributes:
      mean: mean of each input channel, for values in 0 … 1.
      std: standard deviation of each input channel, for values in 0 … 1.
      accumulate: number of micro-batches per batch; BatchNorm sees one micro-batch at a time.
      ema_decay: upper limit of the moving average's decay, see `ema.decay_at`; 0 switches the average off.
      augmentations: names of registered augmentations, see `augmentations.augment`.
      mixup: α of mixup, see `mixing.mix`; 0 switches it off.
      cutmix: α of cutmix, see `mixing.mix`; 0 switches it off.
      batch_norm: images over which BatchNorm computes its statistics: the `global` batch, or those of each `device`;
        the running statistics are then the mean over devices.
      frozen: beginnings of the paths of parts that keep their parameters and batch statistics, such as `layer3/0`.
      seed: seed of initialisation, dropout and mixing.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    accumulate: int = 1
    ema_decay: float = 0.0
    augmentations: tuple[str, ...] = ()
    mixup: float = 0.0
    cutmix: float = 0.0
    batch_norm: str = "global"
    frozen: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_norm not in BATCH_NORMS:
            raise ValueError(f"batch_norm='{self.batch_norm}' is not one of {', '.join(BATCH_NORMS)}")


class Program:
    """The functions of one run, each compiled once. It holds no arrays: states come in and go out.

    Args:
      make_model: builds the model from its random streams.
      task: targets, loss and probabilities.
      optimizer: the optimizer; None if nothing is trained.
      spec: settings of the training step.
      layout: the devices, and how states and batches are sharded.

    Attributes:
      abstract: the state's shapes, types, shardings and memory layouts, without values.

    Raises:
      RunError: `spec.frozen` names no part of the model, or all of it.
      ValueError: unknown optimizer or schedule.
    """

    def __init__(
        self,
        make_model: MakeModel,
        task: Task,
        optimizer: OptimizerSpec | None,
        spec: StepSpec,
        layout: Layout,
    ):
        self._make_model, self._task, self._spec, self._layout = make_model, task, spec, layout
        self._optimizer = make_optimizer(optimizer) if optimizer else optax.with_extra_args_support(optax.identity())
        # What depends on the training images and the length of the run, so that other runs share the compilation.
        self._numbers: Numbers = {
            "plan": plan(optimizer) if optimizer else None,
            "loss_weights": np.asarray(task.loss_weights, np.float32),
        }
        template = nnx.eval_shape(self._new_model)
        # Not every model has BatchNorm and dropout, so these modes may find nothing to switch.
        training = nnx.view(template, use_running_average=False, deterministic=False, raise_if_not_found=False)
        if spec.frozen:
            _check_frozen(split_module(template).params, spec.frozen)
            training = eval_view(training, only=lambda path, _: path_begins(path, spec.frozen))
        self._train_graph, self._eval_graph = nnx.graphdef(training), nnx.graphdef(eval_view(template))
        shapes = jax.eval_shape(self._initial_state, split_module(template))
        formats = layout.formats(shapes)
        self.abstract: TrainState = jax.tree.map(
            lambda leaf, form: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=form), shapes, formats
        )
        batch = layout.batch
        # Initialisation runs once: on CPUs, full optimization would take far longer than it saves.
        init_options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
        self._jit_init = jax.jit(self._init, out_shardings=formats, compiler_options=init_options)
        self._jit_train = jax.jit(
            self._train,
            donate_argnums=0,
            in_shardings=(formats, batch, layout.replicated),
            # Without these, the compiler would re-shard parameters as it likes.
            out_shardings=(formats, layout.replicated),
        )
        self._jit_predict = jax.jit(
            self._predict,
            # Shardings without memory layouts, because models also come from elsewhere.
            in_shardings=(jax.tree.map(lambda leaf: leaf.sharding, self.abstract.model), batch),
            out_shardings=(batch, layout.replicated),
        )
        self._jit_sums = jax.jit(
            task.evaluation_sums, in_shardings=(batch, batch, batch), out_shardings=layout.replicated
        )
        self._jit_gather = jax.jit(lambda flags: flags, in_shardings=batch, out_shardings=layout.replicated)
        self._compiling: threading.Thread | None = None

    def init(self) -> TrainState:
        """Return a fresh state, sharded from the start."""
        return self._jit_init()

    def compile_ahead(self, batch_size: int, image_size: int) -> None:
        """Start compiling `train` in a thread, while a state is initialised or restored.

        `train` waits for the thread. An error in it is dropped: `train` then compiles again and raises it.

        Args:
          batch_size: images per global batch.
          image_size: height and width of the images in pixels.
        """

        def compile_train() -> None:
            with contextlib.suppress(Exception):
                self.compiled_train(self.abstract, self.batch(batch_size, image_size))

        self._compiling = threading.Thread(target=compile_train, name="compile-ahead")
        self._compiling.start()

    def batch(self, batch_size: int, image_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return shapes, types and shardings of a global batch, without values."""
        label, pixels = self._task.label_spec, (image_size, image_size, 3)
        arrays = {"image": (pixels, jnp.uint8), self._task.batch_key: (label.shape, label.dtype), "mask": ((), bool)}
        return {
            key: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=self._layout.batch)
            for key, (shape, dtype) in arrays.items()
        }

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """Make one update.

        Args:
          state: the state before the update; it is consumed (donated).
          batch: arrays of a global batch, as `batch` describes them.

        Returns:
          The state after the update, and the metrics `loss`, `accuracy` and `grad_norm`, each `f32 []` on the device.
        """
        if self._compiling is not None:
            self._compiling.join()
            self._compiling = None
        return self._jit_train(state, batch, self._placed_numbers)

    def predict(self, model: ModelState, images: jax.Array) -> jax.Array:
        """Return `probabilities: f32 [b, k]` of a global batch of images `u8 [b, s, s, 3]`."""
        return self._jit_predict(model, images)[1]

    def evaluate(self, model: ModelState, batch: Batch) -> dict[str, jax.Array]:
        """Return the result of `predict` as `probabilities`, and the task's sums over the unmasked images.

        With stain normalisation, `normalised: bool [b]` of the batch is returned as well.
        """
        logits, probabilities = self._jit_predict(model, batch["image"])
        sums = self._jit_sums(logits, batch[self._task.batch_key], batch["mask"])
        if "normalised" in batch:  # with stain normalisation; on all processes, as the probabilities are
            sums = {**sums, "normalised": self._jit_gather(batch["normalised"])}
        return {"probabilities": probabilities, **sums}

    def compiled_train(self, state: TrainState, batch: Mapping[str, Any]) -> jax.stages.Compiled:
        """Return the executable of `train`, for its text, costs and memory.

        Nothing is compiled twice. Arguments may be shapes instead of arrays.
        """
        replicated = self._layout.replicated
        numbers = jax.tree.map(
            lambda number: jax.ShapeDtypeStruct(number.shape, number.dtype, sharding=replicated), self._numbers
        )
        return self._jit_train.lower(state, batch, numbers).compile()

    def compiled_predict(self, model: ModelState, images: Any) -> jax.stages.Compiled:
        """Return the executable of `predict`, see `compiled_train`."""
        return self._jit_predict.lower(model, images).compile()

    def logits(self, model: ModelState, images: jax.Array) -> jax.Array:
        """Return the logits `f32 [b, k]` of images `u8 [b, s, s, 3]` in evaluation mode; not compiled by itself."""
        return self.apply(lambda module, normalised: module(normalised), model, images)

    def apply(self, function: Callable[[Any, jax.Array], jax.Array], model: ModelState, images: jax.Array) -> jax.Array:
        """Return `function(module, images)`, with the module in evaluation mode; not compiled by itself.

        Args:
          function: takes the module and normalised images; it may change the module, which is a copy.
          model: the model's state.
          images: `u8 [b, s, s, 3]`.
        """
        module = nnx.merge(self._eval_graph, self._layout.gathered(model.params), model.stats, model.rng)
        return function(module, normalise(images, self._spec.mean, self._spec.std))

    def _new_model(self) -> nnx.Module:
        return self._make_model(seeded(params=self._spec.seed, dropout=self._spec.seed + 1))

    def _init(self) -> TrainState:
        return self._initial_state(split_module(self._new_model()))

    def _initial_state(self, model: ModelState) -> TrainState:
        return TrainState(
            step=jnp.zeros([], jnp.int32),
            model=model,
            opt=self._optimizer.init(model.params),
            key=jax.random.key(self._spec.seed + 2),
            ema=model if self._spec.ema_decay else None,
        )

    @functools.cached_property
    def _placed_numbers(self) -> Numbers:
        """The numbers on the devices, so that they are not copied with each step."""
        return jax.device_put(self._numbers, self._layout.replicated)

    def _train(self, state: TrainState, batch: Batch, numbers: Numbers) -> tuple[TrainState, dict[str, jax.Array]]:
        spec, mask = self._spec, batch["mask"]
        task = self._task.weighted(numbers["loss_weights"])
        key = jax.random.fold_in(state.key, state.step)
        images = normalise(augment(batch["image"], key, spec.augmentations), spec.mean, spec.std)
        targets = task.targets(batch[task.batch_key])
        images, targets = mix(images, targets, key, mixup=spec.mixup, cutmix=spec.cutmix)
        weight = task.loss_weight(targets, mask)
        loss_and_grads = functools.partial(self._loss_and_grads, task)

        def micro_step(model: ModelState, *arrays: jax.Array) -> tuple[ModelState, StepSums]:
            if spec.batch_norm == "device":
                return per_device_step(loss_and_grads, self._layout.map_over_devices, model, weight, *arrays)
            with sharded_calls(self._layout.shard_map_batch):
                return loss_and_grads(model, weight, *arrays)

        model, sums = accumulate(micro_step, state.model, (images, targets, mask), spec.accumulate)
        updates, opt = self._optimizer.update(sums.grads, state.opt, state.model.params, plan=numbers["plan"])
        model = dataclasses.replace(model, params=optax.apply_updates(state.model.params, updates))
        ema = None if state.ema is None else update_average(state.ema, model, state.step, spec.ema_decay)
        metrics = {
            "loss": sums.loss,
            "accuracy": sums.num_correct / jnp.sum(mask),
            "grad_norm": optax.tree.norm(sums.grads),
        }
        return TrainState(state.step + 1, model, opt, state.key, ema), metrics

    def _loss_and_grads(
        self, task: Task, model: ModelState, weight: jax.Array, images: jax.Array, targets: jax.Array, mask: jax.Array
    ) -> tuple[ModelState, StepSums]:
        """Differentiate the task's loss of a (micro-)batch, whose sum is divided by `weight`.

        Returns:
          The model with new batch statistics and random streams and the old parameters, and the sums.
        """

        def loss_fn(params: nnx.State) -> tuple[jax.Array, tuple[ModelState, jax.Array]]:
            if frozen := self._spec.frozen:  # their gradients, and those of what lies before them, are not computed
                is_frozen = begins_with(params, frozen)
                params = jax.tree.map(lambda p, stop: jax.lax.stop_gradient(p) if stop else p, params, is_frozen)
            module = nnx.merge(self._train_graph, self._layout.gathered(params), model.stats, model.rng)
            logits = module(images)
            num_correct = task.num_correct(logits, targets, mask)
            return task.loss_sum(logits, targets, mask) / weight, (split_module(module), num_correct)

        (loss, (after, num_correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(model.params)
        return dataclasses.replace(after, params=model.params), StepSums(grads, loss, num_correct)

    def _predict(self, model: ModelState, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        with sharded_calls(self._layout.shard_map_batch):
            logits = self.logits(model, images)
        return logits, self._task.probabilities(logits)


def _check_frozen(params: nnx.State, frozen: tuple[str, ...]) -> None:
    """Check that each entry of `frozen` names a part of the model, and that something is left to train."""
    for start in frozen:
        if not any(jax.tree.leaves(begins_with(params, [start]))):
            parts = dict.fromkeys(
                jax.tree_util.keystr(path, simple=True, separator="/").split("/")[0]
                for path, _ in jax.tree_util.tree_leaves_with_path(params)
            )
            hint = did_you_mean(start, list(parts)) or f": its parts are {', '.join(parts)}"
            raise RunError(f"train.frozen: '{start}' is no part of the model{hint}")
    if all(jax.tree.leaves(begins_with(params, frozen))):
        raise RunError(f"train.frozen={frozen} leaves nothing to train")
