"""The histojax worker of `histojax bench step|infer|input`: `python -m histojax.cli.bench.ours JSON`."""

import collections
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from histojax.cli.bench import worker
from histojax.cli.bench.worker import COPY_BYTES, fastest
from histojax.core.errors import RunError
from histojax.data.cache import with_cache
from histojax.data.pipeline import LoaderSpec, train_batches
from histojax.data.sources import open_dataset
from histojax.data.transforms import AugmentSpec
from histojax.distributed import runtime
from histojax.distributed.sharding import Layout
from histojax.models.cost import cost
from histojax.training import build, default_config, profiling
from histojax.training.program import Program
from histojax.training.tasks import Multiclass

CLASSES = ("benign", "malignant")
_EPOCH = 8192  # images of an epoch, at least, when a host is measured
_IN_FLIGHT = 2  # repeats queued on the device, as in training and prediction
_MATMUL_SIDE = {"cpu": 2048, "": 8192}  # rows and columns of the matrices, by backend


class _Compiled:
    """Training steps or predictions of a model with random weights, on one random batch."""

    def __init__(self, spec: dict[str, Any]):
        self._compiling: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._record_compilation)
        self._layout, self._program = _program(spec)
        self._spec, self._n, self._size = spec, spec["batch_size"], spec["image_size"]
        if spec["work"] == "step":
            self._program.compile_ahead(self._n, self._size)
        self._state = self._program.init()
        rng = np.random.default_rng(0)
        self._batch = self._layout.to_device(
            {
                "image": rng.integers(0, 256, (self._n, self._size, self._size, 3), dtype=np.uint8),
                "label": rng.integers(0, len(CLASSES), self._n).astype(np.int32),
                "mask": np.ones(self._n, bool),
            }
        )
        began = time.perf_counter()
        jax.block_until_ready(self._start())
        self._first = time.perf_counter() - began

    def _record_compilation(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            now = time.perf_counter()
            self._compiling.append((now - duration_secs, now))

    def _start(self) -> Any:
        """Start a repeat; return the arrays that it computes."""
        raise NotImplementedError

    def _compiled(self) -> jax.stages.Compiled:
        """Return the compiled program of a repeat."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """See `worker.Side`."""
        _, flops = cost(self._spec["model"], len(CLASSES), self._size, self._spec["options"])
        # Count forward passes: the count of the whole lowered program depends on how a layer is written.
        passes = 3 if isinstance(self, _Step) else 1
        costs = self._compiled().cost_analysis() or {}
        device = jax.devices()[0]
        return {
            "device": f"{jax.device_count()} × {device.device_kind}",
            "platform": device.platform,
            "version": f"jax {jax.__version__}",
            "first_call_seconds": self._first,
            "compile_seconds": covered_seconds(self._compiling),
            "flops_per_image": passes * flops,
            "bytes_per_repeat": float(costs.get("bytes accessed", float("nan"))) * jax.device_count(),
        }

    def run(self, repeats: int) -> dict[str, Any]:
        """See `worker.Side`."""
        in_flight: collections.deque[Any] = collections.deque()
        began = time.perf_counter()
        for _ in range(repeats):
            in_flight.append(self._start())
            if len(in_flight) > _IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
        jax.block_until_ready((in_flight, self._state))
        return {"seconds": time.perf_counter() - began, "images": repeats * self._n}

    def memory(self) -> dict[str, Any]:
        """See `worker.Side`."""
        stats = jax.local_devices()[0].memory_stats()
        if stats and "peak_bytes_in_use" in stats:
            return {"bytes": stats["peak_bytes_in_use"], "of": "device"}
        return {"bytes": worker.memory_peak(), "of": "process"}

    def limits(self) -> dict[str, Any]:
        """See `worker.Side`: a product of square matrices in the model's type, and a copy, over all devices."""
        side = _MATMUL_SIDE.get(jax.default_backend(), _MATMUL_SIDE[""])
        dtype = jnp.dtype(self._spec["dtype"])
        rows, replicated = self._layout.batch, self._layout.replicated
        left = jax.device_put(jnp.ones((side, side), dtype), rows)
        right = jax.device_put(jnp.ones((side, side), dtype), replicated)
        product = jax.jit(jnp.dot, in_shardings=(rows, replicated), out_shardings=rows)
        width = COPY_BYTES // 4 // jax.device_count()
        array = jax.device_put(jnp.ones((jax.device_count(), width), jnp.float32), rows)
        # In place, because allocating memory costs more than the copy.
        negative = jax.jit(jnp.negative, in_shardings=rows, out_shardings=rows, donate_argnums=0)

        def negate() -> jax.Array:
            nonlocal array
            array = negative(array)
            return array

        return {
            "matmul_flops": 2 * side**3 / fastest(lambda: jax.block_until_ready(product(left, right))),
            "copy_bytes": 2 * array.nbytes / fastest(lambda: jax.block_until_ready(negate())),
        }

    def profile(self, repeats: int, folder: str) -> dict[str, Any]:
        """See `worker.Side`."""
        profiling.start(pathlib.Path(folder))
        self.run(repeats)
        jax.profiler.stop_trace()
        hlo = self._compiled().as_text() or ""
        return {"table": profiling.table(profiling.operations(pathlib.Path(folder), hlo), repeats)}


class _Step(_Compiled):
    """Training steps."""

    def _start(self) -> Any:
        self._state, metrics = self._program.train(self._state, self._batch)
        return metrics

    def _compiled(self) -> jax.stages.Compiled:
        return self._program.compiled_train(self._state, self._batch)


class _Infer(_Compiled):
    """Predictions."""

    def _start(self) -> Any:
        return self._program.predict(self._state.model, self._batch["image"])

    def _compiled(self) -> jax.stages.Compiled:
        return self._program.compiled_predict(self._state.model, self._batch["image"])


class _Input:
    """Augmented batches from the images of a dataset, as training reads them; they stay in host memory."""

    def __init__(self, spec: dict[str, Any]):
        config = _config(spec)
        config.data.root = spec["root"]
        config.data.magnification = "all"
        config.data.cache, config.data.augment.crop_scale = spec["cache"], spec["crop_scale"]
        config.data.cache_dir = spec["cache_dir"]
        cache = build.cache(config)
        size, threads = spec["image_size"], spec["threads"]
        dataset = with_cache(open_dataset(config.data), cache, size, threads, config.data.cache_dir)
        indices = np.arange(len(dataset.records))
        self._images, rows = len(indices), None
        if share := spec.get("share"):  # (index, count): one of several processes of a host
            rows = tuple(np.array_split(np.arange(spec["batch_size"]), share[1])[share[0]].tolist())
            # Drawing one of few images takes long: a block cipher walks until it meets their number.
            indices = np.resize(indices, max(len(indices), _EPOCH))
        loader = LoaderSpec(spec["batch_size"], size, 0, threads=threads, workers=spec["workers"], rows=rows)
        augmentation = AugmentSpec(crop_scale=spec["crop_scale"], colour_jitter=spec["colour_jitter"])
        self._batches: Iterator[dict[str, np.ndarray]] = train_batches(dataset, indices, loader, augmentation)
        self._n = loader.local_batch_size
        # Batches that are ready before a round begins must not count.
        self._buffered = 3 + 2 * spec["workers"]
        next(self._batches)

    def facts(self) -> dict[str, Any]:
        """See `worker.Side`."""
        return {"version": f"jax {jax.__version__}", "images": self._images}

    def run(self, repeats: int) -> dict[str, Any]:
        """See `worker.Side`."""
        for _ in range(self._buffered):
            next(self._batches)
        began = time.perf_counter()
        for _ in range(repeats):
            next(self._batches)
        return {"seconds": time.perf_counter() - began, "images": repeats * self._n}

    def run_between(self, begin: float, end: float) -> dict[str, Any]:
        """Make batches from now to `end` and count those after `begin`, times of `time.monotonic`; as `run`."""
        while time.monotonic() < begin:
            next(self._batches)
        began, images = time.monotonic(), 0
        while (now := time.monotonic()) < end or not images:
            next(self._batches)
            images += self._n
        return {"seconds": now - began, "images": images}


class _Fit:
    """The memory that training steps or predictions need: compiled, but never run."""

    def __init__(self, spec: dict[str, Any]):
        self._training, self._size = spec["fits"] == "step", spec["image_size"]
        _, self._program = _program(spec)

    def facts(self) -> dict[str, Any]:
        """See `worker.Side`."""
        stats = jax.local_devices()[0].memory_stats() or {}
        return {"limit_bytes": stats.get("bytes_limit"), "devices": jax.device_count()}

    def needs(self, batch_size: int) -> dict[str, Any]:
        """Return the bytes per device that a batch needs: arguments, results not aliased to them, temporaries."""
        state, batch = self._program.abstract, self._program.batch(batch_size, self._size)
        compiled = (
            self._program.compiled_train(state, batch)
            if self._training
            else self._program.compiled_predict(state.model, batch["image"])
        )
        sizes = compiled.memory_analysis()
        if sizes is None:
            raise RunError(f"--find_batch: the compiler of {jax.default_backend()} does not report a program's memory")
        external = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        return {"bytes": external + sizes.temp_size_in_bytes}


def covered_seconds(spans: list[tuple[float, float]]) -> float:
    """Return the seconds covered by (start, end) spans, which may overlap."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered


def _program(spec: dict[str, Any]) -> tuple[Layout, Program]:
    config = _config(spec)
    layout = Layout(config.sharding.fsdp)
    layout.check_batch("--batch_size", spec["batch_size"])
    task = Multiclass(CLASSES, (1.0,) * len(CLASSES))
    return layout, build.program(config, task, layout, build.optimizer(config, steps_per_epoch=1000))


def _config(spec: dict[str, Any]) -> ConfigDict:
    config = default_config.base()
    config.model.name, config.model.options = spec["model"], ConfigDict(spec["options"])
    config.model.dtype, config.model.remat = spec["dtype"], spec["remat"]
    config.data.image_size = spec["image_size"]
    config.train.batch_size = config.evaluation.batch_size = spec["batch_size"]
    config.optimizer.name = spec["optimizer"]
    return config


def _make(spec: dict[str, Any]) -> Any:
    if spec.get("disable_command_buffers"):
        profiling.disable_command_buffers()
    runtime.prepare(spec["cpu_devices"])
    return {"step": _Step, "infer": _Infer, "input": _Input, "fit": _Fit}[spec["work"]](spec)


if __name__ == "__main__":
    worker.serve(_make)
