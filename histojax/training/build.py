"""From a config to the objects that it describes: the one place where fields meet constructors."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines import protocols
from data_pipelines.split_spec import SplitSpec
from histojax import models
from histojax.core.errors import RunError
from histojax.data.cache import CACHES
from histojax.data.pipeline import LoaderSpec
from histojax.data.transforms import AugmentSpec
from histojax.distributed.sharding import Layout
from histojax.evaluation import thresholds
from histojax.training import losses
from histojax.training.optimizer import OptimizerSpec, make_optimizer
from histojax.training.step import Program, StepSpec
from histojax.training.tasks import Multiclass, Multilabel, Task

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def split_spec(config: ConfigDict) -> SplitSpec:
    """`config.data.split`, its protocol by name."""
    return protocols.split_spec(config.data.split)


def augment_spec(config: ConfigDict) -> AugmentSpec:
    """`config.data.augment`.

    Raises:
      RunError: a strength out of range.
    """
    spec = AugmentSpec(**config.data.augment)
    if not 0 < spec.crop_scale <= 1:
        raise RunError(f"data.augment.crop_scale={spec.crop_scale} is not in (0, 1]")
    if not (0 <= spec.colour_jitter < 1 and 0 <= spec.stain_jitter < 1 and spec.blur >= 0 and spec.crop_ratio >= 1):
        raise RunError("data.augment: jitters are in [0, 1), blur is at least 0, crop_ratio at least 1")
    return spec


def cache(config: ConfigDict) -> str:
    """`data.cache`.

    Raises:
      RunError: unknown, or one that cannot have what is asked for.
    """
    kind = str(config.data.get("cache", "none"))  # older checkpoints have no such field
    if kind not in CACHES:
        raise RunError(f"data.cache='{kind}' is not one of {', '.join(CACHES)}")
    if kind == "resized" and config.data.augment.crop_scale < 1:
        raise RunError(
            f"data.cache=resized keeps whole images of {config.data.image_size} pixels, and "
            f"data.augment.crop_scale={config.data.augment.crop_scale} cuts from the original ones: use crop_scale=1.0 "
            "or cache=decoded"
        )
    if kind != "none" and config.data.get("on_bad_record", "error") == "mask":
        raise RunError(f"data.cache={kind} reads every image before training: use data.on_bad_record=error")
    return kind


def loader_spec(config: ConfigDict, layout: Layout, *, training: bool) -> LoaderSpec:
    """How batches are made, for training or for evaluation.

    Raises:
      RunError: a batch that does not divide among the devices.
    """
    if training:
        batch_size, field, parts = config.train.batch_size, "train.batch_size", config.train.accumulate
    else:
        batch_size, field, parts = config.evaluation.batch_size, "evaluation.batch_size", 1
    layout.check_batch(field, batch_size, parts)
    return LoaderSpec(
        batch_size=batch_size,
        image_size=config.data.image_size,
        seed=config.seed,
        sampling=config.data.sampling,
        threads=config.data.threads,
        workers=config.data.workers,
        on_bad_record=config.data.get("on_bad_record", "error"),  # older checkpoints have no such field
        rows=layout.rows(batch_size),
    )


def task(config: ConfigDict, classes: Sequence[str], counts: Sequence[int], images: int) -> Task:
    """The task with its weights from the training images.

    Args:
      config: `data.task`, `loss`.
      classes: names of the classes or labels.
      counts: training images of each class, or with each label.
      images: all training images.

    Raises:
      RunError: an unknown loss or weighting.
    """
    loss, multilabel = config.loss, config.data.task == "multilabel"
    foreign = "class_weights" if multilabel else "positive_weights"
    if loss[foreign] != "none":
        right = "positive_weights" if multilabel else "class_weights"
        raise RunError(
            f"loss.{foreign} has no meaning for data.task='{config.data.task}': set it to none; see loss.{right}"
        )
    try:
        if multilabel:
            weights = losses.positive_weights(loss.positive_weights, counts, images)
            asymmetric = (loss.asymmetric_gamma_positive, loss.asymmetric_gamma_negative, loss.asymmetric_margin)
            return Multilabel(
                tuple(classes),
                tuple(weights.tolist()),
                loss.name,
                loss.label_smoothing,
                loss.focal_gamma,
                asymmetric,
            )
        weights = losses.class_weights(loss.class_weights, counts, loss.class_balanced_beta)
        return Multiclass(tuple(classes), tuple(weights.tolist()), loss.name, loss.label_smoothing, loss.focal_gamma)
    except ValueError as error:
        raise RunError(str(error)) from error


def threshold_rule(config: ConfigDict) -> str:
    """`train.thresholds`.

    Raises:
      RunError: no such rule.
    """
    try:
        thresholds.check_rule(config.train.thresholds)
    except ValueError as error:
        raise RunError(str(error)) from error
    rule: str = config.train.thresholds
    return rule


def optimizer(config: ConfigDict, steps_per_epoch: int) -> tuple[optax.GradientTransformation, OptimizerSpec]:
    """The optimizer, and what it was made of.

    Raises:
      RunError: an unknown optimizer or schedule.
    """
    model, fields = model_spec(config), config.optimizer.to_dict()
    spec = OptimizerSpec(
        warmup_steps=round(fields.pop("warmup_epochs") * steps_per_epoch),
        total_steps=config.train.epochs * steps_per_epoch,
        freeze_backbone_steps=config.train.freeze_backbone_epochs * steps_per_epoch,
        head_parts=model.head_parts,
        without_weight_decay=model.without_weight_decay,
        **fields,
    )
    try:
        return make_optimizer(spec), spec
    except ValueError as error:
        raise RunError(str(error)) from error


def model_spec(config: ConfigDict) -> models.ModelSpec:
    """Return the specification of `config.model.name`, importing `config.model.module` if it is set.

    Raises:
      RunError: a module that cannot be imported, or an unknown model.
    """
    try:
        models.import_module(config.model.get("module", ""))  # older checkpoints have no such field
    except ValueError as error:
        raise RunError(f"model.module: {error}") from error
    try:
        return models.spec(config.model.name)
    except ValueError as error:
        raise RunError(f"model.name / model.options: {error}") from error


def program(config: ConfigDict, task: Task, layout: Layout, transform: optax.GradientTransformation) -> Program:
    """The compiled functions of a run.

    Raises:
      RunError: an unknown model, option or type; an image size that the model does not take.
    """
    if config.model.dtype not in _DTYPES:
        raise RunError(f"model.dtype='{config.model.dtype}' is not one of {', '.join(_DTYPES)}")
    if config.train.accumulate < 1:
        raise RunError(f"train.accumulate={config.train.accumulate} is not at least 1")
    if not 0 <= config.train.ema_decay < 1:
        raise RunError(f"train.ema_decay={config.train.ema_decay} is not in [0, 1)")
    model, options = model_spec(config), config.model.options.to_dict()
    try:
        model_config = model.configure(options)
    except ValueError as error:
        raise RunError(f"model.name / model.options: {error}") from error
    try:
        model.check_image_size(config.data.image_size, model_config)
    except ValueError as error:
        raise RunError(f"data.image_size={config.data.image_size}: {error}") from error

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
            mixup=config.train.mixup,
            cutmix=config.train.cutmix,
            batch_norm=config.train.get("batch_norm", "global"),
            seed=config.seed,
        )
    except ValueError as error:
        raise RunError(f"train.{error}") from error
    try:
        return Program(make_model, task, transform, spec, layout)
    except RunError:
        raise
    except ValueError as error:
        raise RunError(f"model.name / model.options: {error}") from error
