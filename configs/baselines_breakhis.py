"""The baselines of the DALAResNet50 paper (arXiv 2308.13150) on BreakHis, all under the same protocol.

One model (`MODEL` is one of `MODELS`; the default is resnet50):

    python -m histojax.main --config configs/baselines_breakhis.py:MODEL --workdir runs/MODEL --config.data.root=PATH

All models, one after another, and the paper's table:

    histojax compare --config configs/baselines_breakhis.py --workdir runs/compare --config.data.root=PATH

The paper's abstract states the models, the dataset, the metrics (accuracy, precision, recall, F1, GMean, IBA), and the
accuracies of DALAResNet50: 98.5, 98.7, 97.9 and 94.3 % at 40X, 100X, 200X and 400X. It states neither the protocol nor
the baselines' results. `ldcsf` is the network of another paper (arXiv 2308.10446) that this one does not compare with;
it is listed last. The same protocol means the same images, split, augmentation, loss, schedule, batch size and number
of epochs. Only the learning rate depends on the kind of network (`_RATES`), because a rate that trains a ResNet from
random weights does not train a transformer. `MODEL,smoke` and `:smoke` shrink the run to a laptop: 64×64 pixels, one
epoch, the built-in synthetic images.
"""

from ml_collections import ConfigDict

from histojax.training import default_config

MODELS = (
    "dala_resnet50",
    "resnet50",
    "seresnet50",
    "densenet121",
    "vgg16",
    "vgg16_inception",
    "vit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "dinov2_vitb14",
    "ldcsf",
)
# Networks without batch norm do not learn at the 1e-3 of the others.
_RATES = {
    "vgg16": 1e-4,
    "vgg16_inception": 1e-4,
    "vit_base_patch16_224": 1e-4,
    "swin_tiny_patch4_window7_224": 3e-4,
    "dinov2_vitb14": 1e-4,
    "ldcsf": 3e-4,
}


def get_config(variant: str = "") -> ConfigDict:
    """Return the experiment; `variant` is empty, a model, `smoke`, or both separated by a comma."""
    parts = [part for part in variant.split(",") if part]
    names = [part for part in parts if part != "smoke"]
    for name in names:
        if name not in MODELS:
            raise ValueError(f"unknown variant ':{name}' of this config; choose from smoke, {', '.join(MODELS)}")
    if len(names) > 1:
        raise ValueError(f"the variants {', '.join(names)} of this config exclude each other")
    config = default_config.base()
    config.model.name = names[0] if names else "resnet50"
    config.optimizer.learning_rate = _RATES.get(config.model.name, 1e-3)
    config.data.augment.crop_scale = 0.6
    config.data.augment.colour_jitter = 0.1
    config.data.augment.stain_jitter = 0.05
    config.loss.class_weights = "inverse"
    config.optimizer.clip_norm = 1.0
    config.compare.models = MODELS
    config.paper.source = "arXiv 2308.13150, protocol not stated"
    reported = {"40X": 0.985, "100X": 0.987, "200X": 0.979, "400X": 0.943}  # DALAResNet50
    config.paper.accuracy = ConfigDict({"dala_resnet50": ConfigDict(reported)})
    if "smoke" in parts:
        config.data.synthetic = True
        config.data.image_size = 56 if config.model.name == "dinov2_vitb14" else 64  # four patches of 14
        config.train.batch_size = 16
        config.train.epochs = 1
        config.data.augment.crop_scale = 0.8
        config.sharding.cpu_devices = 1
        config.evaluation.resamples = 500
    return config
