"""Fine-tuning from pretrained weights on BreakHis, for a few hundred images of a few dozen patients.

    histojax train --config finetune_breakhis:dala_resnet50 --workdir runs/finetuned \\
        --config.model.pretrained=FILE --config.data.root=PATH

The variant is one of `MODELS`; `MODEL,smoke` shrinks the run to a laptop. All share one recipe, which was fixed in
advance and never changed for a result: with so few patients, a choice by validation is a draw. The early parts of the
network, which hold general filters, keep the weights of the file (`train.frozen`); the rest learns slowly, and the new
head ten times faster. Augmentation of colour and stain varies what should not matter. The average of the weights over
the last steps is evaluated, after a fixed number of epochs, so no image is spent on validation. `histojax crossval`
adds a threshold.

`MODEL,random` is the counterpart without a file: all parts learn from random weights, faster and for longer.
"""

from typing import Any

from ml_collections import ConfigDict

from histojax.training import default_config

_RESNET_HALF = ("conv1", "bn1", "layer1", "layer2")
# Model -> its options, and the parts that are not trained.
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "dala_resnet50": ({"attention": "layer4", "head": "dual"}, _RESNET_HALF),
    "resnet50": ({}, _RESNET_HALF),
    "seresnet50": ({}, _RESNET_HALF),
    "vgg16": ({}, ("blocks/0", "blocks/1", "blocks/2")),
    "vit_small_patch14_dinov2": (
        {},
        ("patch_embed", "class_token", "position_embedding", *(f"blocks/{i}" for i in range(8))),
    ),
}


def get_config(variant: str = "") -> ConfigDict:
    """Return the experiment; `variant` is a model (default: dala_resnet50), `random`, `smoke`, or several of them."""
    parts = [part for part in variant.split(",") if part]
    names = [part for part in parts if part not in ("random", "smoke")]
    for name in names:
        if name not in MODELS:
            known = ", ".join(["random", "smoke", *MODELS])
            raise ValueError(f"unknown variant ':{name}' of this config; choose from {known}")
    if len(names) > 1:
        raise ValueError(f"the variants {', '.join(names)} of this config exclude each other")
    name = names[0] if names else "dala_resnet50"
    options, frozen = MODELS[name]
    config = default_config.base()
    config.model.name = name
    config.model.options = ConfigDict(options)
    config.data.split.val_fraction = 0.0
    config.data.augment.crop_scale = 0.5
    config.data.augment.colour_jitter = 0.2
    config.data.augment.stain_jitter = 0.2
    config.loss.class_weights = "inverse"
    config.loss.label_smoothing = 0.1
    config.optimizer.learning_rate = 1e-4
    config.optimizer.head_multiplier = 10.0
    config.optimizer.clip_norm = 1.0
    config.train.batch_size = 16
    config.train.epochs = 6
    config.train.frozen = frozen
    config.train.ema_decay = 0.98
    config.train.best_metric = "last"
    if "random" in parts:
        config.train.frozen = ()
        config.train.epochs = 15
        config.optimizer.learning_rate = 5e-4
        config.optimizer.head_multiplier = 1.0
    if "smoke" in parts:
        config.data.synthetic = True
        config.data.image_size = 56 if name.startswith("vit") else 64  # four patches of 14
        config.train.epochs = 1
        config.sharding.cpu_devices = 1
        config.evaluation.resamples = 500
    return config
