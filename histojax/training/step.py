"""The mathematics of training: state, one training step, one evaluation step; pure, each compiled once."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from histojax.distributed.sharding import Layout
from histojax.models.ops.sharded_call import sharded_calls
from histojax.models.rngs import seeded
from histojax.training.state import ModelState, TrainState, split_module
from histojax.training.tasks import Task

Batch = dict[str, jax.Array]
MakeModel = Callable[[nnx.Rngs], nnx.Module]

BATCH_NORMS = ("global", "device")


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """How a step is done.

    Attributes:
      mean: of the input's channels, of values in 0 … 1.
      std: of the input's channels.
      accumulate: micro-batches into which a batch is divided; BatchNorm sees one at a time.
      ema_decay: greatest decay of the moving average, which starts smaller: min(decay, (1 + t)/(10 + t)).
      mixup: α of Zhang et al. 2018; 0: off.
      cutmix: α of Yun et al. 2019; 0: off. With both, each batch has one of them, at random.
      batch_norm: statistics of the `global` batch, or of each `device`'s share; running ones are then their mean.
      seed: of initialisation, dropout and mixing.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    accumulate: int = 1
    ema_decay: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    batch_norm: str = "global"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_norm not in BATCH_NORMS:
            raise ValueError(f"batch_norm='{self.batch_norm}' is not one of {', '.join(BATCH_NORMS)}")


class Program:
    """The compiled functions of one run.

    Attributes:
      abstract: the state's shapes, types, shardings and memory layouts, without values.
    """

    def __init__(
        self,
        make_model: MakeModel,
        task: Task,
        optimizer: optax.GradientTransformation,
        spec: StepSpec,
        layout: Layout,
    ):
        self._make_model, self._task, self._optimizer, self._spec = make_model, task, optimizer, spec
        self._layout = layout
        template = nnx.eval_shape(self._new_model)

        def graph(**mode: bool) -> nnx.GraphDef:
            # Not every model has BatchNorm and dropout.
            return nnx.graphdef(nnx.view(template, raise_if_not_found=False, **mode))

        self._train_graph = graph(use_running_average=False, deterministic=False)
        self._eval_graph = graph(use_running_average=True, deterministic=True)
        shapes = jax.eval_shape(self._fresh, split_module(template))
        formats = layout.formats(shapes)
        self.abstract: TrainState = jax.tree.map(
            lambda leaf, form: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=form), shapes, formats
        )
        batch = layout.batch
        # It runs once: on CPUs, compiling it well takes far longer than running it less well.
        quickly = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
        self._jit_init = jax.jit(self._init, out_shardings=formats, compiler_options=quickly)
        self._jit_train = jax.jit(
            self._train,
            donate_argnums=0,
            in_shardings=(formats, batch),
            # Given, because the compiler would otherwise re-shard parameters as it likes.
            out_shardings=(formats, layout.replicated),
        )
        self._jit_predict = jax.jit(
            self._predict,
            # Of no memory layout: models also come from elsewhere.
            in_shardings=(jax.tree.map(lambda leaf: leaf.sharding, self.abstract.model), batch),
            out_shardings=(batch, layout.replicated),
        )
        self._jit_sums = jax.jit(
            task.evaluation_sums, in_shardings=(batch, batch, batch), out_shardings=layout.replicated
        )
        self._ahead: threading.Thread | None = None

    def init(self) -> TrainState:
        """A fresh state, born sharded."""
        return self._jit_init()

    def compile_ahead(self, batch_size: int, image_size: int) -> None:
        """Begins to compile `train` in a thread, while a state is made or read.

        `train` waits for it. What goes wrong there goes wrong there, too, and is told then.
        """

        def compile_train() -> None:
            with contextlib.suppress(Exception):
                self.compiled_train(self.abstract, self.batch(batch_size, image_size))

        self._ahead = threading.Thread(target=compile_train, name="compile-ahead")
        self._ahead.start()

    def batch(self, batch_size: int, image_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a global batch, without values."""
        truth, pixels = self._task.truth, (image_size, image_size, 3)
        arrays = {"image": (pixels, jnp.uint8), self._task.batch_key: (truth.shape, truth.dtype), "mask": ((), bool)}
        return {
            key: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=self._layout.batch)
            for key, (shape, dtype) in arrays.items()
        }

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update; `state` is consumed. Metrics: `loss`, `accuracy`, `grad_norm`, each `f32 []` on the device."""
        if self._ahead is not None:
            self._ahead.join()
            self._ahead = None
        return self._jit_train(state, batch)

    def predict(self, model: ModelState, images: jax.Array) -> jax.Array:
        """Return `probabilities: f32 [b, k]` of a global batch of images `u8 [b, s, s, 3]`."""
        return self._jit_predict(model, images)[1]

    def evaluate(self, model: ModelState, batch: Batch) -> dict[str, jax.Array]:
        """Return what `predict` does as `probabilities`, and the task's sums over the unmasked images."""
        logits, probabilities = self._jit_predict(model, batch["image"])
        sums = self._jit_sums(logits, batch[self._task.batch_key], batch["mask"])
        return {"probabilities": probabilities, **sums}

    def compiled_train(self, state: TrainState, batch: Mapping[str, Any]) -> jax.stages.Compiled:
        """What `train` runs, for its text, costs and memory; nothing is compiled twice. Shapes are enough."""
        return self._jit_train.lower(state, batch).compile()

    def compiled_predict(self, model: ModelState, images: Any) -> jax.stages.Compiled:
        """As `compiled_train`, of `predict`."""
        return self._jit_predict.lower(model, images).compile()

    def logits(self, model: ModelState, images: jax.Array) -> jax.Array:
        """`f32 [b, k]` of images `u8 [b, s, s, 3]` as evaluation computes them; not compiled by itself."""
        module = nnx.merge(self._eval_graph, self._layout.gathered(model.params), model.stats, model.rng)
        return module(self._normalise(images))

    def _new_model(self) -> nnx.Module:
        return self._make_model(seeded(params=self._spec.seed, dropout=self._spec.seed + 1))

    def _init(self) -> TrainState:
        return self._fresh(split_module(self._new_model()))

    def _fresh(self, model: ModelState) -> TrainState:
        return TrainState(
            step=jnp.zeros([], jnp.int32),
            model=model,
            opt=self._optimizer.init(model.params),
            key=jax.random.key(self._spec.seed + 2),
            ema=model if self._spec.ema_decay else None,
        )

    def _normalise(self, images: jax.Array) -> jax.Array:
        mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, 3) for v in (self._spec.mean, self._spec.std))
        return (images.astype(jnp.float32) / 255 - mean) / std

    def _train(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        images, targets = self._normalise(batch["image"]), self._task.targets(batch[self._task.batch_key])
        images, targets = self._mix(images, targets, jax.random.fold_in(state.key, state.step))
        weight = self._task.loss_weight(targets, batch["mask"])

        def loss_and_grads(
            model: ModelState, weight: jax.Array, images: jax.Array, targets: jax.Array, mask: jax.Array
        ) -> Any:
            def loss_fn(params: nnx.State) -> tuple[jax.Array, tuple[ModelState, jax.Array]]:
                module = nnx.merge(self._train_graph, self._layout.gathered(params), model.stats, model.rng)
                logits = module(images)
                right = self._task.right(logits, targets, mask)
                return self._task.loss_sum(logits, targets, mask) / weight, (split_module(module), right)

            (loss, (after, right)), grads = jax.value_and_grad(loss_fn, has_aux=True)(model.params)
            return dataclasses.replace(after, params=model.params), grads, loss, right

        def per_device_step(device: jax.Array, given: Any, arrays: Any) -> Any:
            model, weight = given
            # Each device draws for its own images; the streams that go on from here stay the same on all.
            own = jax.tree.map(lambda leaf: jax.random.fold_in(leaf, device) if _is_key(leaf) else leaf, model.rng)
            after, grads, loss, right = loss_and_grads(dataclasses.replace(model, rng=own), weight, *arrays)
            rng = jax.tree.map(lambda old, new: old if _is_key(old) else new, model.rng, after.rng)
            return after.stats, (grads, loss, right), rng

        def micro_step(model: ModelState, *arrays: jax.Array) -> Any:
            if self._spec.batch_norm == "global":
                with sharded_calls(self._layout.shard_map_batch):
                    return loss_and_grads(model, weight, *arrays)
            stats, sums, rng = self._layout.map_over_devices(per_device_step)((model, weight), arrays)
            return ModelState(model.params, stats, rng), *sums

        arrays = (images, targets, batch["mask"])
        if self._spec.accumulate == 1:
            model, grads, loss, right = micro_step(state.model, *arrays)
        else:
            model, grads, loss, right = self._accumulate(micro_step, state.model, arrays)
        updates, opt = self._optimizer.update(grads, state.opt, state.model.params)
        model = dataclasses.replace(model, params=optax.apply_updates(state.model.params, updates))
        metrics = {
            "loss": loss,
            "accuracy": right / jnp.sum(batch["mask"]),
            "grad_norm": optax.tree.norm(grads),
        }
        return TrainState(state.step + 1, model, opt, state.key, self._average(state, model)), metrics

    def _accumulate(self, micro_step: Callable[..., Any], model: ModelState, arrays: tuple[jax.Array, ...]) -> Any:
        """Gradients of micro-batches, summed; every n-th image goes to the same one, so no device sends any."""
        n = self._spec.accumulate
        micro = [jnp.moveaxis(a.reshape(a.shape[0] // n, n, *a.shape[1:]), 1, 0) for a in arrays]

        def body(carry: Any, one: Any) -> tuple[Any, None]:
            model, grads, loss, right = carry
            model, more_grads, more_loss, more_right = micro_step(model, *one)
            return (
                model,
                jax.tree.map(jnp.add, grads, more_grads),
                loss + more_loss,
                right + more_right,
            ), None

        zero = (model, jax.tree.map(jnp.zeros_like, model.params), jnp.zeros([]), jnp.zeros([]))
        return jax.lax.scan(body, zero, tuple(micro))[0]

    def _mix(self, images: jax.Array, targets: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mixup or cutmix of each image with its mirror image in the (shuffled) batch."""
        if not (self._spec.mixup or self._spec.cutmix):
            return images, targets
        which, for_mixup, for_cutmix, for_box = jax.random.split(key, 4)
        height, width = images.shape[1:3]
        alpha, beta = self._spec.mixup or 1.0, self._spec.cutmix or 1.0
        share = jax.random.beta(for_mixup, alpha, alpha)  # of the image itself
        mixed = share * images + (1 - share) * images[::-1]

        side = jnp.sqrt(1 - jax.random.beta(for_cutmix, beta, beta))
        centre = jax.random.uniform(for_box, (2,))
        rows, columns = jnp.arange(height)[:, None] / height, jnp.arange(width)[None, :] / width
        box = (jnp.abs(rows - centre[0]) < side / 2) & (jnp.abs(columns - centre[1]) < side / 2)
        cut = jnp.where(box[None, :, :, None], images[::-1], images)

        if self._spec.mixup and self._spec.cutmix:
            use_cut = jax.random.bernoulli(which)
        else:
            use_cut = jnp.asarray(bool(self._spec.cutmix))
        share = jnp.where(use_cut, 1 - box.mean(), share)
        return jnp.where(use_cut, cut, mixed), share * targets + (1 - share) * targets[::-1]

    def _average(self, state: TrainState, model: ModelState) -> ModelState | None:
        if state.ema is None:
            return None
        done = state.step.astype(jnp.float32) + 1
        decay = jnp.minimum(self._spec.ema_decay, (1 + done) / (10 + done))

        def mean(old: jax.Array, new: jax.Array) -> jax.Array:
            return old * decay + new * (1 - decay)

        return ModelState(
            jax.tree.map(mean, state.ema.params, model.params),
            jax.tree.map(mean, state.ema.stats, model.stats),
            model.rng,
        )

    def _predict(self, model: ModelState, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        with sharded_calls(self._layout.shard_map_batch):
            logits = self.logits(model, images)
        return logits, self._task.probabilities(logits)


def _is_key(leaf: jax.Array) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
