"""Everything that a config and its images determine, for the training loop and for loops of one's own.

docs/how-to/library.md shows a loop.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from data_pipelines.splits import Split
from data_pipelines.stain import StainNormalizer
from histojax.core.machine import cores
from histojax.data.cache import with_cache
from histojax.data.pipeline import LoaderSpec, eval_batches, train_batches
from histojax.data.sources import Dataset, open_dataset
from histojax.distributed.sharding import Layout
from histojax.evaluation import own_metrics
from histojax.storage import places
from histojax.training import build, default_config, evaluate, leaks, pretrained, stains
from histojax.training.optimizer import OptimizerSpec
from histojax.training.program import Batch, Program
from histojax.training.state import TrainState
from histojax.training.tasks import Task

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A config with its data, split and compiled functions; nothing is on disk but the prepared data.

    Attributes:
      config: the config.
      layout: the devices.
      train_spec: how training batches are made.
      eval_spec: how batches of evaluation are made.
      dataset: the images.
      split: their sides.
      class_counts: training images of each class, or with each label.
      task: targets, loss and probabilities.
      optimizer_spec: the optimizer.
      program: `init`, `train` (one step), `predict` and `evaluate`.
      steps_per_epoch: full batches in an epoch.
      stain: the fitted stain normalisation, as `histojax.training.stains.fit` returns it; None: there is none.
    """

    config: ConfigDict
    layout: Layout
    train_spec: LoaderSpec
    eval_spec: LoaderSpec
    dataset: Dataset
    split: Split
    class_counts: list[int]
    task: Task
    optimizer_spec: OptimizerSpec
    program: Program
    steps_per_epoch: int
    stain: dict[str, Any] | None

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return int(self.config.train.epochs * self.steps_per_epoch)

    def init(self) -> TrainState:
        """Return a fresh state, with the weights of `model.pretrained` if that is set.

        Raises:
          RunError: the weights cannot be read, or are of another model.
        """
        return self.initial_state()[0]

    def initial_state(self) -> tuple[TrainState, str]:
        """Return what `init` returns, and a line that says where the weights came from; empty: random."""
        state, model = self.program.init(), self.config.model
        if not model.pretrained:
            return state, ""
        classes = self.dataset.classes
        return pretrained.fill(state, model.name, model.pretrained, model.pretrained_prefix, classes)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, on the devices. They are a function of the seed and the number, from 0."""
        start = number * self.steps_per_epoch
        augmentation = build.augment_spec(self.config)
        stream = train_batches(self.dataset, self.split.indices("train"), self.train_spec, augmentation, start=start)
        try:
            for _ in range(self.steps_per_epoch):
                yield self.layout.to_device(next(stream))
        finally:
            stream.close()

    def validate(self, state: TrainState, side: str = "val") -> dict[str, float]:
        """Return loss and metrics of a side's images, in evaluation mode, of the moving average if there is one."""
        indices: np.ndarray = self.split.indices(side)
        batches = eval_batches(self.dataset, indices, self.eval_spec)
        model = state.ema or state.model
        output = evaluate.run_model(self.program, model, batches, len(indices), self.layout)
        return evaluate.validation_metrics(output, self.dataset, indices)

    def predict(self, state: TrainState, side: str = "test") -> pd.DataFrame:
        """Return the table of predictions of a side's images, which `histojax.evaluation` reads."""
        model = state.ema or state.model
        return evaluate.predict_split(
            self.program, model, self.dataset, self.split, (side,), self.eval_spec, self.layout
        )


def open_trainer(config: ConfigDict, saved: Mapping[str, Any] | None = None) -> Trainer:
    """Check a config, open its data and build its program.

    Args:
      config: as `histojax.training.experiments.read` returns it; paths of images are made absolute.
      saved: metadata of the checkpoint that is resumed, whose stain normalisation is used again; None: of a new run.

    Raises:
      RunError, DataError: a problem that the user can fix.
    """
    default_config.check_values(config)
    make_paths_absolute(config)
    layout = Layout(config.sharding.fsdp, rules=config.sharding.rules)
    train_spec = build.loader_spec(config, layout, training=True)
    eval_spec = build.loader_spec(config, layout, training=False)
    build.check(config)  # before the data are read
    cache = build.cache(config)
    data = config.data
    # One process of a host writes the cache, while the others wait.
    dataset = with_cache(open_dataset(data), cache, data.image_size, data.threads or cores(), data.cache_dir)
    split = leaks.check(config, dataset, dataset.split(build.split_spec(config)))
    train_indices = split.indices("train")
    steps_per_epoch = max(1, len(train_indices) // train_spec.batch_size)
    counts = dataset.counts(train_indices)
    task = build.task(config, dataset.classes, counts, len(train_indices))
    own_metrics.check(config.evaluation.metrics, len(dataset.classes), dataset.multilabel)
    optimizer_spec = build.optimizer(config, steps_per_epoch)
    program = build.program(config, task, layout, optimizer_spec)
    stain = stains.fit(config, dataset, split) if saved is None else saved.get("stain")
    normalizer = StainNormalizer.from_json(stain)
    train_spec, eval_spec = (dataclasses.replace(spec, stain=normalizer) for spec in (train_spec, eval_spec))
    for line in (*dataset.report(split), f"protocol: {split.protocol}", *split.warnings):
        _log.info(line)
    return Trainer(
        config, layout, train_spec, eval_spec, dataset, split, counts, task, optimizer_spec, program, steps_per_epoch,
        stain,
    )  # fmt: skip


def make_paths_absolute(config: ConfigDict) -> None:
    """Make the paths of images absolute, so that a checkpoint finds them from any folder."""
    for group, field in ((config.data, "root"), (config.data.stain, "reference")):
        if group[field]:
            group[field] = places.absolute(group[field])
