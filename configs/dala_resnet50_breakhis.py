"""DALAResNet50 on BreakHis, binary (arXiv 2308.13150).

The paper reports 98.5, 98.7, 97.9 and 94.3 % accuracy at 40X, 100X, 200X and 400X, one model a magnification,
from ImageNet weights. Its protocol is not stated in the abstract; the default here is case-disjoint, and
`--config.data.split.protocol=image` is the random image split that most of the literature reports. No pretrained
weights are loaded here. Optimizer, schedule, augmentation and epochs are our choice.

On real images (archive, extracted tree or mirror; prepared on first use):

    python -m histojax.main --config configs/dala_resnet50_breakhis.py --workdir runs/dala_100x \\
        --config.data.root=PATH --config.data.magnification=100X

`:smoke` is the same program at 64×64 for a laptop: without data.root, on the embedded synthetic images.
"""

from ml_collections import ConfigDict

from histojax.training import default_config


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `variant` is empty or `smoke`."""
    config = default_config.base()
    config.model.name = "dala_resnet50"
    config.model.options = ConfigDict(
        {
            "attention": "layer4",  # none, layer4, layer4_blocks
            "head": "dual",  # linear, dual
            "reduction": 16,
            "head_widths": (512, 256),
            "dropout": 0.2,
        }
    )
    config.data.augment.crop_scale = 0.6
    config.data.augment.colour_jitter = 0.1
    config.data.augment.stain_jitter = 0.05
    config.loss.class_weights = "inverse"
    config.optimizer.clip_norm = 1.0
    if variant == "smoke":
        config.data.image_size = 64
        config.train.batch_size = 16
        config.train.epochs = 10
        config.train.ema_decay = 0.95  # a hundred steps make a noisy end; their average is steadier
        config.data.augment.crop_scale = 0.8
        config.checkpoint.every_epochs = 5
        config.sharding.cpu_devices = 1  # images this small lose more by waiting for each other than they gain
    elif variant:
        raise ValueError(f"unknown variant ':{variant}' of this config; there is only ':smoke'")
    return config
