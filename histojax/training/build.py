"""Building the objects that a config describes: the one place that maps config fields to constructors."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines import protocols
from data_pipelines.split_spec import SplitSpec
from data_pipelines.stain import StainNormalizer
from histojax import models
from histojax.core import plugins
from histojax.core.errors import RunError
from histojax.data.cache import CACHES
from histojax.data.pipeline import LoaderSpec
from histojax.data.transforms import AugmentSpec
from histojax.distributed import hosts
from histojax.distributed.sharding import Layout
from histojax.evaluation import own_metrics, thresholds
from histojax.training import augmentations, default_config, losses
from histojax.training.optimizer import OptimizerSpec
from histojax.training.program import Program, StepSpec
from histojax.training.tasks import Multiclass, Multilabel, Task, check_loss

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def check(config: ConfigDict) -> None:
    """Import the plugins, and check what the range of a single field does not decide: data root, split, names, model.

    Raises:
      RunError, DataError: as the functions that build them.
    """
    plugins.load(config.plugins)
    default_config.check_data_root(config)
    if config.data.stain.reference and config.data.stain.method == "none":
        raise RunError(
            f"data.stain.reference={config.data.stain.reference} has no effect with data.stain.method=none: set "
            "data.stain.method=macenko or reinhard, or drop it"
        )
    split_spec(config)
    threshold_rule(config)
    model_options(config)
    own_metrics.find(config.evaluation.metrics)
    augmentations.check(config.train.augmentations, config.train.batch_size, config.data.image_size)
    try:
        check_loss(config.loss.name, Multilabel if config.data.task == "multilabel" else Multiclass)
    except ValueError as error:
        raise RunError(str(error)) from error


def split_spec(config: ConfigDict) -> SplitSpec:
    """Build the specification of the split from `config.data.split`, whose protocol is a name."""
    return protocols.split_spec(config.data.split)


def augment_spec(config: ConfigDict) -> AugmentSpec:
    """Build the specification of the augmentations from `config.data.augment`."""
    return AugmentSpec(**config.data.augment)


def cache(config: ConfigDict) -> str:
    """Return `data.cache`.

    Raises:
      RunError: an unknown kind, or one that does not allow the other settings.
    """
    kind = config.data.cache
    if kind not in CACHES:
        raise RunError(f"data.cache='{kind}' is not one of {', '.join(CACHES)}")
    if kind == "resized" and config.data.augment.crop_scale < 1:
        raise RunError(
            f"data.cache=resized keeps images resized to {config.data.image_size} pixels, but "
            f"data.augment.crop_scale={config.data.augment.crop_scale} crops the original images: use crop_scale=1.0 "
            "or cache=decoded"
        )
    if kind != "none" and config.data.on_bad_record == "mask":
        raise RunError(f"data.cache={kind} reads every image before training: use data.on_bad_record=error")
    if kind == "none" and config.data.cache_dir:
        raise RunError(
            f"data.cache_dir={config.data.cache_dir} has no effect with data.cache=none: set data.cache=resized or "
            "decoded, or drop it"
        )
    return kind


def loader_spec(
    config: ConfigDict, layout: Layout, *, training: bool, stain: StainNormalizer | None = None
) -> LoaderSpec:
    """Build the specification of the batches, for training or for evaluation, with the run's stain normalisation.

    `data.threads` and `data.workers` count per host; the specification has this process's part.

    Raises:
      RunError: the devices cannot divide the batch evenly.
    """
    if training:
        batch_size, field, parts = config.train.batch_size, "train.batch_size", config.train.accumulate
    else:
        batch_size, field, parts = config.evaluation.batch_size, "evaluation.batch_size", 1
    layout.check_batch(field, batch_size, parts)
    host, data = hosts.here(), config.data
    return LoaderSpec(
        batch_size=batch_size,
        image_size=config.data.image_size,
        seed=config.seed,
        sampling=config.data.sampling,
        threads=host.part(data.threads) if data.threads else host.cores,
        workers=host.part(data.workers) if data.workers else 0,
        on_bad_record=config.data.on_bad_record,
        rows=layout.rows(batch_size),
        stain=stain,
    )


def task(config: ConfigDict, classes: Sequence[str], counts: Sequence[int], images: int) -> Task:
    """Build the task, with loss weights computed from the training images.

    Args:
      config: `data.task` and `loss` are read.
      classes: names of the classes or labels.
      counts: training images of each class, or with each label.
      images: number of training images.

    Raises:
      RunError: a plugin cannot be imported, an unknown loss or weighting, or a weighting that does not fit the task or
        the images.
    """
    plugins.load(config.plugins)
    loss, multilabel = config.loss, config.data.task == "multilabel"
    unused, used = "class_weights", "positive_weights"
    if not multilabel:
        unused, used = used, unused
    if loss[unused] != "none":
        raise RunError(
            f"loss.{unused} has no meaning for data.task='{config.data.task}': set it to none; see loss.{used}"
        )
    weights = _positive_weights(loss, counts, images) if multilabel else _class_weights(loss, counts)
    fields = (tuple(classes), tuple(weights.tolist()), loss.name, loss.label_smoothing, loss.focal_gamma)
    try:
        if multilabel:
            shape = (loss.asymmetric_gamma_positive, loss.asymmetric_gamma_negative, loss.asymmetric_margin)
            return Multilabel(*fields, shape)
        return Multiclass(*fields)
    except ValueError as error:
        raise RunError(str(error)) from error


def _class_weights(loss: ConfigDict, counts: Sequence[int]) -> np.ndarray:
    """Compute the weights of the classes, `f32 [k]`, with mean 1, as `loss.class_weights` says."""
    kind, beta = loss.class_weights, loss.class_balanced_beta
    if kind == "none":
        return np.ones(len(counts), np.float32)
    if kind == "inverse":
        return losses.inverse_frequency_weights(counts)
    if kind != "class_balanced":
        raise RunError(f"loss.class_weights='{kind}' is not one of none, inverse, class_balanced")
    if not 0 < beta < 1:
        raise RunError(f"loss.class_balanced_beta={beta} is not in (0, 1)")
    return losses.class_balanced_weights(counts, beta)


def _positive_weights(loss: ConfigDict, positives: Sequence[int], images: int) -> np.ndarray:
    """Compute the weights of each label's positive images, `f32 [k]`, as `loss.positive_weights` says."""
    kind = loss.positive_weights
    if kind == "none":
        return np.ones(len(positives), np.float32)
    if kind != "balanced":
        raise RunError(f"loss.positive_weights='{kind}' is neither 'none' nor 'balanced'")
    if any(n in (0, images) for n in positives):
        raise RunError(
            f"loss.positive_weights=balanced: of {images} training images, {[int(n) for n in positives]} carry the "
            "labels; each label needs images with it and images without it. Use 'none', or more data"
        )
    return losses.balanced_positive_weights(positives, images)


def threshold_rule(config: ConfigDict) -> str:
    """Return `train.thresholds`.

    Raises:
      RunError: an unknown rule.
    """
    try:
        thresholds.check_rule(config.train.thresholds)
    except ValueError as error:
        raise RunError(str(error)) from error
    rule: str = config.train.thresholds
    return rule


def optimizer(config: ConfigDict, steps_per_epoch: int) -> OptimizerSpec:
    """Return the optimizer's specification.

    Raises:
      RunError: an unknown model.
    """
    model, fields = model_spec(config), config.optimizer.to_dict()
    return OptimizerSpec(
        warmup_steps=round(fields.pop("warmup_epochs") * steps_per_epoch),
        total_steps=config.train.epochs * steps_per_epoch,
        freeze_backbone_steps=config.train.freeze_backbone_epochs * steps_per_epoch,
        head_parts=model.head_parts,
        without_weight_decay=model.without_weight_decay,
        frozen=tuple(config.train.frozen),
        **fields,
    )


def model_spec(config: ConfigDict) -> models.ModelSpec:
    """Return the specification of `config.model.name`.

    Raises:
      RunError: a plugin cannot be imported, or the model is unknown.
    """
    plugins.load(config.plugins)
    try:
        return models.spec(config.model.name)
    except ValueError as error:
        raise RunError(f"model.name / model.options: {error}") from error


def model_options(config: ConfigDict) -> dict[str, Any]:
    """Return `config.model.options`.

    Raises:
      RunError: an unknown model or option, or an image size that the model does not accept.
    """
    model, options = model_spec(config), config.model.options.to_dict()
    try:
        model_config = model.configure(options)
    except ValueError as error:
        advice = ""
        if not options.keys() <= set(model.options):
            advice = (
                ". Options belong to one model: after a change of model.name, add --config.model.options={}, or use "
                "--config=baselines_breakhis:NAME"
            )
        raise RunError(f"model.name / model.options: {error}{advice}") from error
    try:
        model.check_image_size(config.data.image_size, model_config)
    except ValueError as error:
        raise RunError(f"data.image_size={config.data.image_size}: {error}") from error
    return options


def program(config: ConfigDict, task: Task, layout: Layout, optimizer: OptimizerSpec | None = None) -> Program:
    """Build the compiled functions of a run.

    Args:
      config: of the model and the training step.
      task: targets, loss and probabilities.
      layout: the devices.
      optimizer: the optimizer; None if nothing is trained.

    Raises:
      RunError: an unknown model, option, optimizer or schedule, or an image size that the model does not accept.
    """
    options = model_options(config)

    def make_model(rngs: nnx.Rngs) -> nnx.Module:
        return models.create(
            config.model.name,
            num_classes=len(task.classes),
            rngs=rngs,
            dtype=_DTYPES[config.model.dtype],
            remat=config.model.remat,
            **options,
        )

    try:
        spec = StepSpec(
            mean=tuple(config.data.mean),
            std=tuple(config.data.std),
            accumulate=config.train.accumulate,
            ema_decay=config.train.ema_decay,
            augmentations=tuple(config.train.augmentations),
            mixup=config.train.mixup,
            cutmix=config.train.cutmix,
            batch_norm=config.train.batch_norm,
            frozen=tuple(config.train.frozen),
            seed=config.seed,
        )
    except ValueError as error:
        raise RunError(f"train.{error}") from error
    try:
        return Program(make_model, task, optimizer, spec, layout)
    except RunError:
        raise
    except ValueError as error:
        raise RunError(f"model.name / model.options: {error}") from error
