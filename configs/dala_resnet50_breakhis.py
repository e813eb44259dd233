"""DALAResNet50 on BreakHis, binary (arXiv 2308.13150).

The paper reports accuracies of 98.5, 98.7, 97.9 and 94.3 % at 40X, 100X, 200X and 400X, with one model per
magnification and ImageNet weights. Its abstract does not state the protocol. The default here is case-disjoint;
`--config.data.split.protocol=image` is the random image split that most publications report. No pretrained weights are
loaded here. Optimizer, schedule, augmentation and epochs are our choice.

On real images (archive, extracted tree or mirror; prepared on first use):

    python -m histojax.main --config configs/dala_resnet50_breakhis.py --workdir runs/dala_100x \\
        --config.data.root=PATH --config.data.magnification=100X

`:smoke` runs the same program at 64×64 on a laptop; without data.root, it uses the built-in synthetic images.
"""

from ml_collections import ConfigDict

from histojax.training import default_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the experiment; `variant` is empty or `smoke`."""
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
        config.data.synthetic = True
        config.data.image_size = 64
        config.train.batch_size = 16
        config.train.epochs = 10
        config.train.ema_decay = 0.95  # after so few steps the last weights are noisy; their average is steadier
        config.data.augment.crop_scale = 0.8
        config.checkpoint.every_epochs = 5
        config.sharding.cpu_devices = 1  # with images this small, synchronising two devices costs more than it gains
    elif variant:
        raise ValueError(f"unknown variant ':{variant}' of this config; the only variant is ':smoke'")
    return config
