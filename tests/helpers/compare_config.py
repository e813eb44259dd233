"""Two tiny models to compare in seconds: a ViT, for which a paper's accuracy is stated, and a Swin."""

from ml_collections import ConfigDict

from tests.helpers import tiny_config

MODELS = ("vit", "swin_tiny_patch4_window7_224")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of the model `variant`; empty: the ViT."""
    if variant and variant not in MODELS:
        raise ValueError(f"unknown variant ':{variant}' of this config; choose from {', '.join(MODELS)}")
    config = tiny_config.get_config()
    if variant == MODELS[1]:
        config.model.name = variant
        config.model.options = ConfigDict({"depths": (1,), "heads": (2,), "embed_dim": 16})
    config.train.update(epochs=1, ema_decay=0.0, mixup=0.0, cutmix=0.0)
    config.compare.models = MODELS
    config.data.magnification = "100X"
    config.paper.source = "a paper"
    config.paper.accuracy = ConfigDict({"vit": ConfigDict({"100X": 0.987})})
    return config
