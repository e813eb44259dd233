"""Any images with one class each: class folders, or a table of paths and labels; published sets by name.

    histojax train --config image_folder:resnet50 --workdir runs/mine --config.data.root=IMAGES
    histojax train --config image_folder:mhist,densenet121 --workdir runs/mhist --config.data.root=MHIST

The variant is the name of a model (`histojax models`; the default is ResNet50), of a published set, or both. The layout
of a published set is known, and its images are counted: docs/data/public-sets.md. `histojax init IMAGES` looks at other
images and writes a config like this one, with what it found. data_pipelines/image_folder/README.md describes the
layouts. The split is the strictest that the images allow (`auto`): by case, patient or slide if these are known, else
by image, which is optimistic.

`:smoke` runs the same program on the built-in synthetic images at 64×64.
"""

from ml_collections import ConfigDict

from histojax.training import default_config

# Networks without batch norm do not learn at the 1e-3 of the others.
_RATE, _RATE_WITHOUT_BATCH_NORM = 1e-3, 1e-4
_WITHOUT_BATCH_NORM = ("vgg", "vit", "swin", "dinov2", "ldcsf")
SETS = ("bach", "nct_crc_he", "pcam", "lc25000", "mhist", "oral_oscc", "osteosarcoma")


def get_config(variant: str = "") -> ConfigDict:
    """Return the experiment; `variant` has any of a published set, a model (default resnet50) and `smoke`."""
    parts = [part for part in variant.split(",") if part]
    sets = [part for part in parts if part in SETS]
    names = [part for part in parts if part not in (*SETS, "smoke")]
    for same in (sets, names):
        if len(same) > 1:
            raise ValueError(f"the variants {', '.join(same)} of this config exclude each other")
    config = default_config.base()
    config.data.pipeline = "image_folder"
    config.data.task = "classes"
    config.data.magnification = ""
    config.data.images.recipe = sets[0] if sets else ""
    config.data.split.protocol = "auto"
    config.data.augment.crop_scale = 0.6
    config.data.augment.colour_jitter = 0.1
    config.data.augment.stain_jitter = 0.05
    config.model.name = names[0] if names else "resnet50"
    config.loss.class_weights = "inverse"
    slow = config.model.name.startswith(_WITHOUT_BATCH_NORM)
    config.optimizer.learning_rate = _RATE_WITHOUT_BATCH_NORM if slow else _RATE
    config.optimizer.clip_norm = 1.0
    config.compare.models = ("resnet50", "densenet121", "vgg16", "swin_tiny_patch4_window7_224", "vit_base_patch16_224")
    if "smoke" in parts:
        config.data.synthetic = True
        config.data.image_size = 56 if "14" in config.model.name else 64  # four patches of 14
        config.train.batch_size = 16
        config.train.epochs = 1
        config.data.augment.crop_scale = 0.8
        config.sharding.cpu_devices = 1
        config.evaluation.resamples = 500
    return config
