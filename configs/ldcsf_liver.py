"""LDCSF on multi-label liver tiles (arXiv 2308.10446).

The paper's abstract states a Swin transformer module, a local depth convolution (LDC) module, a feature reconstruction
(FR) module and a ResNet module, in that order; accuracies for four labels (interstitial area 0.9460, necrosis 0.9960,
non-tumor 0.9808, tumor 0.9847); and the tumor-to-stroma ratio from the tiles of a slide.

Everything else is not stated, and neither code nor data are published, so it is our choice: all sizes and positions of
modules (fields of `model.options`, histojax/models/ldcsf.py), tile size 224, loss (sigmoid cross-entropy with positives
weighted by negatives / positives), thresholds (best F1 of each label on validation), optimizer, schedule, augmentation,
epochs, and the split: by patient if patients are known, else by slide, else by source image. No pretrained weights are
loaded here.

On your own tiles (a table of paths and labels, class folders, labels in file names, or images with masks: see
data_pipelines/liver_tiles/README.md; prepared on first use):

    python -m histojax.main --config configs/ldcsf_liver.py --workdir runs/ldcsf --config.data.root=PATH

`:smoke` runs the same program with a small LDCSF at 64×64 on a laptop; without data.root, it uses the built-in
synthetic tiles and takes about a minute on two cores (mAP 0.71, chance 0.41; this says nothing about liver). Ablations:
`--config.model.options.ldc=none`, `.fr=False`, `.resnet=False`, and the variants `:swin` (plain Swin-T) and
`:resnet50`, also as `:smoke,swin` and `:smoke,resnet50`.
"""

from ml_collections import ConfigDict

from histojax.training import default_config

_VARIANTS = ("smoke", "swin", "resnet50")


def get_config(variant: str = "") -> ConfigDict:
    """Return the experiment; `variant` is empty or some of smoke, swin, resnet50, separated by commas."""
    parts = [part for part in variant.split(",") if part]
    for part in parts:
        if part not in _VARIANTS:
            raise ValueError(f"unknown variant ':{part}' of this config; choose from {', '.join(_VARIANTS)}")
    if {"swin", "resnet50"} <= set(parts):
        raise ValueError("the variants ':swin' and ':resnet50' of this config exclude each other")
    smoke = "smoke" in parts
    config = default_config.base()
    config.data.pipeline = "liver_tiles"
    config.data.task = "multilabel"
    config.data.magnification = ""
    config.data.split.protocol = "auto"
    config.data.augment.crop_scale = 0.6
    config.data.augment.colour_jitter = 0.1
    config.data.augment.stain_jitter = 0.05
    _set_model(config, parts)
    config.train.thresholds = "f1"
    config.loss.positive_weights = "balanced"
    config.train.best_metric = "mean_average_precision"
    config.optimizer.learning_rate = 3e-4  # from random weights, Swin-T learns nothing at 1e-3 with small batches
    config.optimizer.clip_norm = 1.0
    config.paper.source = "arXiv 2308.10446, protocol not stated"
    config.paper.label_accuracy = ConfigDict(
        {"interstitial": 0.9460, "necrosis": 0.9960, "non_tumor": 0.9808, "tumor": 0.9847}
    )
    if smoke:
        config.data.synthetic = True
        config.data.image_size = 64
        config.data.tiles.size = 112
        config.data.tiles.stride = 56
        config.data.augment.crop_scale = 0.8
        config.train.batch_size = 16
        config.train.epochs = 20
        config.train.ema_decay = 0.95
        config.checkpoint.every_epochs = 5
        config.sharding.cpu_devices = 1
    return config


def _set_model(config: ConfigDict, parts: list[str]) -> None:
    smoke = "smoke" in parts
    window = 4 if smoke else 7  # at 64×64, windows of 7 would be mostly padding
    if "resnet50" in parts:
        config.model.name = "resnet50"
    elif "swin" in parts:
        config.model.name = "swin_tiny_patch4_window7_224"
        config.model.options = ConfigDict({"window": window, "stochastic_depth": 0.2})
    else:
        config.model.name = "ldcsf"
        config.model.options = ConfigDict(
            {
                "embed_dim": 48 if smoke else 96,
                "depths": (2, 2, 2) if smoke else (2, 2, 6),
                "heads": (3, 6, 12),
                "window": window,
                "stochastic_depth": 0.2,
                "ldc": "stages",  # stages, blocks, none
                "ldc_norm": "layer",  # layer, batch
                "fr": True,
                "fr_reduction": 16,
                "resnet": True,
                "resnet_blocks": 1 if smoke else 3,
            }
        )
