"""A run of a few seconds with everything that could depend on devices: dropout, mixup, EMA and augmentation."""

from ml_collections import ConfigDict

from configs import dala_resnet50_breakhis, ldcsf_liver
from histojax import models
from histojax.training import default_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a small LDCSF (`ldcsf`), DALAResNet50 (`dala`) or, by default, ViT.

    `mini` is for tests of the run around the model: a model of the tests that compiles in a second.
    """
    if variant == "ldcsf":
        config = ldcsf_liver.get_config("smoke")
        config.model.options.update(depths=(1,), resnet_blocks=1, embed_dim=16, heads=(2,))
    elif variant == "dala":
        config = dala_resnet50_breakhis.get_config("smoke")
        config.model.options = ConfigDict({**models.spec("dala_resnet50").small, "attention": "layer4"})
    else:
        config = default_config.base()
        if variant == "mini":
            config.plugins, config.model.name = ("tests.helpers.mini_model",), "mini"
            config.model.options = ConfigDict({"width": 32, "dropout": 0.1})
        else:
            config.model.name = "vit"
            sizes = {"image_size": 32, "patch": 8, "embed_dim": 32, "depth": 1, "heads": 2}
            config.model.options = ConfigDict(sizes | {"dropout": 0.1, "stochastic_depth": 0.1})
        config.data.augment.crop_scale = 0.7
        config.data.augment.colour_jitter = 0.1
    config.data.synthetic = True
    config.data.image_size = 32
    config.train.batch_size = 8
    config.train.epochs = 3
    config.train.log_every = 1
    config.train.mixup = 0.2
    config.train.cutmix = 1.0
    config.train.ema_decay = 0.9
    config.checkpoint.every_epochs = 1
    config.evaluation.batch_size = 8
    config.evaluation.resamples = 50
    # Adam divides by the size of gradients. Where they are only rounding errors, it would learn from those.
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.sharding.cpu_devices = 1
    return config
