"""The fields that every experiment has, with the defaults that most of them share, and the values that are legal."""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from histojax.core import interval
from histojax.core.errors import RunError
from histojax.core.suggestions import did_you_mean


def base() -> ConfigDict:
    """Return a complete configuration; experiments change its fields and add none."""
    config = ConfigDict()
    config.seed = 0  # random seed of initial values, order, augmentation, mixing and bootstrap
    config.plugins = ()  # importable Python modules that register models, losses and more of your own

    config.data = data = ConfigDict()
    # breakhis; image_folder: any images with one class each; liver_tiles: any tiles with several labels each
    data.pipeline = "breakhis"
    data.root = ""  # archive, folder or table of your images (see the README of the pipeline)
    data.synthetic = False  # without root: train on the built-in synthetic images, as the variants `smoke` do
    data.prepared_dir = ""  # folder of prepared datasets; empty: $HISTOJAX_DATA, else ~/.cache/histojax
    data.magnification = "100X"  # BreakHis: 40X, 100X, 200X, 400X or all
    # BreakHis: binary (benign, malignant) or subtype (the eight); image_folder: classes; liver_tiles: multilabel
    data.task = "binary"
    data.on_bad_image = "error"  # an unreadable image ends the preparation; skip: it is left out and counted
    # An image that cannot be read during training ends the run; mask: it is named in the log and left out of the loss.
    data.on_bad_record = "error"
    # image_folder: train although nearly identical pictures are on two sides of the split; they are counted in results
    data.allow_leak = False
    data.sampling = "natural"  # each image once per epoch; balanced: every class is drawn equally often
    data.image_size = 224  # pixels; side of the square images that the model sees
    data.mpp = 0.0  # µm per pixel of the images on disk, which slides are matched to; 0: unknown
    data.mean = (0.485, 0.456, 0.406)  # subtracted from red, green and blue in 0 … 1; ImageNet's by default
    data.std = (0.229, 0.224, 0.225)  # divides the difference; ImageNet's by default
    data.stain = stain = ConfigDict()
    # Every image is brought to the colours of a reference: macenko (stains of each image, Macenko et al. 2009),
    # reinhard (mean and spread of each image's colours, Reinhard et al. 2001) or none. docs/how-to/stain.md
    stain.method = "none"
    stain.reference = ""  # image file whose colours all get; empty: the typical ones of the run's training images
    # decoded: images are decoded once, to disk; resized: also resized to image_size, which excludes random crops.
    data.cache = "none"
    # Folder of that cache, such as a local disk of each host, on which each host writes its own; empty: beside the
    # prepared dataset
    data.cache_dir = ""
    # Threads per host that decode, if data.workers is 0. The processes of a run on a host divide them, at least one
    # each; 0: one per core
    data.threads = 0
    # Worker processes per host that decode, instead of threads. The processes of a run on a host divide them, at least
    # one each; 0: threads decode
    data.workers = 0

    data.images = images = ConfigDict()  # for image_folder; see data_pipelines/image_folder/README.md
    # Name of a published set (docs/data/public-sets.md): its layout is known, and its images per class are checked
    images.recipe = ""
    images.part = False  # with recipe: fewer images than published are no error
    images.source = ""  # name of a source of your own (data_pipelines.image_folder.register); empty: files
    images.table = ""  # file name of the table below root; needed if there are several
    # Path of each image below the table's folder, with columns in braces: images/{Image Name}; empty: the column path
    images.path_template = ""
    # Regular expression on an image's path below root, with some of the groups patient, case, slide, site,
    # magnification, label, train, val and test
    images.group_pattern = ""
    images.positive = ""  # of two classes, the positive one; empty: malignant, else the second by name
    images.columns = columns = ConfigDict()  # names of the table's columns; capitals do not matter
    columns.path = "path"  # column of the files, relative to the table's folder
    columns.label = "label"  # column of the classes
    columns.patient_id = "patient_id"  # column of the patients; this and the following may be absent
    columns.case_id = "case_id"  # column of what shares tissue, such as an accession number
    columns.slide_id = "slide_id"  # column of the slides
    columns.site = "site"  # column of the hospitals or scanners
    columns.magnification = "magnification"  # column of the magnifications
    columns.mpp = "mpp"  # column of the µm per pixel; kept in results, and a run warns if scales differ
    columns.split = "split"  # column of the sides: train, val, test

    data.tiles = tiles = ConfigDict()  # for liver_tiles; see data_pipelines/liver_tiles/README.md
    # Names of the labels. Empty: interstitial, necrosis, non_tumor, tumor; for WSSS4LUAD's masks: tumor, stroma, normal
    tiles.labels = ()
    tiles.layout = "auto"  # where the labels are stated: auto, table, names, folders or masks
    tiles.table = ""  # file name of the table below root; needed if there are several
    tiles.group_pattern = ""  # regular expression on file names with the groups patient, slide or both
    tiles.size = 224  # pixels; size of the tiles cut from an image with a mask
    tiles.stride = 0  # pixels between tile origins; 0: the tile size
    tiles.min_share = 0.05  # fraction of a tile that a class must cover to be one of its labels
    tiles.mask_values = ()  # value of each label in the masks; empty: 0, 1, 2 … in the labels' order
    tiles.keep_empty = False  # keep tiles without any label

    data.split = split = ConfigDict()
    # BreakHis: case, patient, image, folds, eva; tiles: auto, patient, slide, source, image, given; image_folder: auto,
    # case, patient, slide, site, image, given. A longer name, such as image_with_copies or case_deduplicated, also says
    # how duplicates are treated: data_pipelines/protocols.py
    split.protocol = "case"
    split.test_fraction = 0.25  # fraction of the images on the test side
    split.val_fraction = 0.2  # fraction of the remaining images on the validation side
    split.val_folds = 0  # `histojax crossval` sets it: the validation side is one of so many folds of the rest
    split.val_fold = 0  # that fold, from 0
    split.seed = 0  # random seed of the split
    split.kfolds = 0  # number of folds of a cross-validation; 0: none
    split.fold = 0  # fold on the test side: from 0 with kfolds, from 1 with protocol=folds
    split.folds_dir = ""  # folder with dsfold1.txt … dsfold5.txt, for protocol=folds
    # Identical images: drop all but one; keep them, on the same side; or ignore that they are identical.
    split.duplicates = "drop"

    data.augment = augment = ConfigDict()
    augment.flips = True  # mirror at random, horizontally and vertically
    augment.quarter_turns = True  # turn at random by 0, 90, 180 or 270 degrees
    augment.crop_scale = 1.0  # smallest fraction of the area that a random crop keeps; 1: no crop
    augment.crop_ratio = 4 / 3  # largest aspect ratio of a random crop, relative to the image's
    augment.colour_jitter = 0.0  # largest relative change of brightness, contrast and saturation; 0: off
    augment.stain_jitter = 0.0  # largest relative change of the densities of hematoxylin and eosin; 0: off
    # The same for the stains that Macenko's method finds in the image itself, not for those of all H&E images
    augment.macenko_jitter = 0.0
    augment.blur = 0.0  # largest sigma of a random Gaussian blur, in pixels; 0: off

    config.model = model = ConfigDict()
    model.name = "resnet50"  # model, as `histojax models` lists them
    model.options = ConfigDict()  # sizes and parts of the model; the fields of its config dataclass
    model.pretrained = ""  # file of weights, run of the same model, or hf:OWNER/NAME; other parts start at random
    model.pretrained_prefix = ""  # one of several networks in that file: its keys or the beginning of its names
    model.dtype = "float32"  # type of the computation; parameters and statistics are float32
    model.remat = False  # recompute blocks in the backward pass, which saves memory and costs time

    config.train = train = ConfigDict()
    train.batch_size = 32  # images per step, over all devices
    train.epochs = 50  # passes over the training images
    train.log_every = 10  # steps between log lines
    # Trackers that get curves, config and results: wandb, mlflow, or those that plugins register (docs/how-to/track.md)
    train.trackers = ()
    train.accumulate = 1  # micro-batches per step; BatchNorm sees one at a time
    train.ema_decay = 0.0  # largest decay of the moving average of the parameters, which is then evaluated; 0: off
    train.freeze_backbone_epochs = 0  # epochs at the start in which only the head learns
    # Parts that keep their first weights and batch statistics, as paths or their beginnings: ("conv1", "layer2/0")
    train.frozen = ()
    train.early_stopping = 0  # epochs without a better validation metric; 0: off
    # Metric of the validation side by which the evaluated epoch is chosen: loss, accuracy, f1, balanced_accuracy or
    # gmean; with several labels subset_accuracy or mean_average_precision instead of the last two. last: the last one.
    train.best_metric = "loss"
    # Rule that chooses thresholds on validation, for the positive of two classes or for each label: f1, youden,
    # sensitivity=0.95 (the largest specificity with that sensitivity) or fixed (0.5).
    train.thresholds = "youden"
    train.temperature = "images"  # what counts the same when the temperature is fitted: images or patients
    # BatchNorm sees the global batch; device: the images of each device, as in PyTorch's DistributedDataParallel.
    train.batch_norm = "global"
    train.watchdog = 1800.0  # seconds without a step after which a run ends and prints where it hangs; 0: never
    # Augmentations of your own, in order; plugins register them, and they change whole batches on the devices
    train.augmentations = ()
    train.mixup = 0.0  # alpha of the Beta distribution; 0: off
    train.cutmix = 0.0  # alpha of the Beta distribution; 0: off

    config.loss = loss = ConfigDict()
    # Loss: cross_entropy, focal, with several labels also asymmetric (each then has a sigmoid per label), or one that a
    # plugin registers
    loss.name = "cross_entropy"
    loss.label_smoothing = 0.0  # ε of label smoothing; validation does not smooth
    loss.class_weights = "none"  # weights of the classes; class_balanced: Cui et al. 2019
    loss.class_balanced_beta = 0.999  # beta of Cui et al. 2019
    loss.focal_gamma = 2.0  # gamma of the focal loss (Lin et al. 2017)
    loss.positive_weights = "none"  # with several labels: weights of the positives; balanced: negatives / positives
    loss.asymmetric_gamma_positive = 0.0  # gamma of positives in the asymmetric loss (Ridnik et al. 2021)
    loss.asymmetric_gamma_negative = 4.0  # gamma of negatives
    loss.asymmetric_margin = 0.05  # probability below which a negative costs nothing

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"  # optimizer
    optimizer.learning_rate = 1e-3  # largest learning rate, reached after the warm-up
    optimizer.head_multiplier = 1.0  # learning rate of the head's group relative to the backbone's
    optimizer.schedule = "cosine"  # learning rate after the warm-up
    optimizer.warmup_epochs = 1.0  # epochs in which the learning rate rises from 0
    optimizer.weight_decay = 0.05  # acts on kernels only, not on biases or norms
    optimizer.momentum = 0.9  # momentum of SGD
    optimizer.beta1 = 0.9  # decay of the mean of the gradients in AdamW
    optimizer.beta2 = 0.999  # decay of the mean of their squares
    optimizer.clip_norm = 0.0  # largest norm of the global gradient; 0: off

    config.paper = paper = ConfigDict()  # figures of a paper, printed beside the results; they change nothing
    paper.source = ""  # name of the paper
    paper.accuracy = ConfigDict()  # its accuracy by model
    paper.label_accuracy = ConfigDict()  # its accuracy by label

    config.compare = compare = ConfigDict()
    compare.models = ()  # models that `histojax compare` trains in turn; training ignores it

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_epochs = 1  # epochs between checkpoints
    checkpoint.keep = 2  # number of latest checkpoints kept

    config.evaluation = evaluation = ConfigDict()
    evaluation.batch_size = 32  # images per batch, over all devices
    evaluation.resamples = 2000  # bootstrap resamples
    evaluation.metrics = ()  # metrics of your own, which plugins register; they stand beside ours in all results

    config.sharding = sharding = ConfigDict()
    sharding.fsdp = 1  # devices over which parameters and optimizer are sharded; the rest is data-parallel
    # A parameter is sharded along its largest axis that fsdp divides. Exceptions are "REGEX=AXIS" or "REGEX=none" on
    # its path; the first match counts. `histojax shardings` prints the paths.
    sharding.rules = ()
    sharding.cpu_devices = 2  # simulated devices if there is no accelerator; two cores work better as two devices
    return config


def with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a saved config by the fields that did not exist when it was saved.

    So the default of a new field must be what programs did before the field existed.

    Args:
      saved: the config as JSON values, by group.
    """
    return _merge(json.loads(base().to_json()), saved)


def _merge(defaults: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(defaults)
    for key, value in saved.items():
        default = merged.get(key)
        merged[key] = _merge(default, value) if isinstance(default, dict) and isinstance(value, dict) else value
    return merged


# Intervals of numbers, which also hold for each number of a tuple, and choices of texts. `data.pipeline`, `data.task`,
# `data.magnification`, `data.split` and `train.thresholds` depend on more than one field, and `model.name` and
# `loss.name` on plugins: their readers check them.
LEGAL_VALUES: dict[str, str | tuple[str, ...]] = {
    "seed": "[0, 4294967295]",
    "data.on_bad_image": ("error", "skip"),
    "data.on_bad_record": ("error", "mask"),
    "data.sampling": ("natural", "balanced"),
    "data.image_size": "[1, inf)",
    "data.mpp": "[0, inf)",
    "data.mean": "[0, 1]",
    "data.std": "(0, 1]",
    "data.stain.method": ("none", "macenko", "reinhard"),
    "data.cache": ("none", "decoded", "resized"),
    "data.threads": "[0, inf)",
    "data.workers": "[0, inf)",
    "data.tiles.size": "[1, inf)",
    "data.tiles.stride": "[0, inf)",
    "data.tiles.min_share": "(0, 1]",
    "data.tiles.mask_values": "[0, 255]",
    "data.split.test_fraction": "[0, 1)",
    "data.split.val_fraction": "[0, 1)",
    "data.split.val_folds": "[0, inf)",
    "data.split.val_fold": "[0, inf)",
    "data.split.seed": "[0, 4294967295]",
    "data.split.kfolds": "[0, inf)",
    "data.split.fold": "[0, inf)",
    "data.split.duplicates": ("drop", "keep", "ignore"),
    "data.augment.crop_scale": "(0, 1]",
    "data.augment.crop_ratio": "[1, inf)",
    "data.augment.colour_jitter": "[0, 1)",
    "data.augment.stain_jitter": "[0, 1)",
    "data.augment.macenko_jitter": "[0, 1)",
    "data.augment.blur": "[0, inf)",
    "model.dtype": ("float32", "bfloat16"),
    "train.batch_size": "[1, inf)",
    "train.epochs": "[1, inf)",
    "train.log_every": "[1, inf)",
    "train.accumulate": "[1, inf)",
    "train.ema_decay": "[0, 1)",
    "train.freeze_backbone_epochs": "[0, inf)",
    "train.early_stopping": "[0, inf)",
    "train.temperature": ("images", "patients"),
    "train.best_metric": ("loss", "accuracy", "gmean", "balanced_accuracy", "f1", "last"),
    "train.batch_norm": ("global", "device"),
    "train.watchdog": "[0, inf)",
    "train.mixup": "[0, inf)",
    "train.cutmix": "[0, inf)",
    "loss.label_smoothing": "[0, 1)",
    "loss.class_weights": ("none", "inverse", "class_balanced"),
    "loss.class_balanced_beta": "(0, 1)",
    "loss.focal_gamma": "[0, inf)",
    "loss.positive_weights": ("none", "balanced"),
    "loss.asymmetric_gamma_positive": "[0, inf)",
    "loss.asymmetric_gamma_negative": "[0, inf)",
    "loss.asymmetric_margin": "[0, 1)",
    "optimizer.name": ("adamw", "sgd"),
    "optimizer.learning_rate": "(0, inf)",
    "optimizer.head_multiplier": "(0, inf)",
    "optimizer.schedule": ("cosine", "constant"),
    "optimizer.warmup_epochs": "[0, inf)",
    "optimizer.weight_decay": "[0, inf)",
    "optimizer.momentum": "[0, 1)",
    "optimizer.beta1": "[0, 1)",
    "optimizer.beta2": "[0, 1)",
    "optimizer.clip_norm": "[0, inf)",
    "checkpoint.every_epochs": "[1, inf)",
    "checkpoint.keep": "[1, inf)",
    "evaluation.batch_size": "[1, inf)",
    "evaluation.resamples": "[0, inf)",
    "sharding.fsdp": "[1, inf)",
    "sharding.cpu_devices": "[1, inf)",
}
# What is legal instead with several labels per image.
MULTILABEL_VALUES: dict[str, tuple[str, ...]] = {
    "train.best_metric": ("loss", "accuracy", "mean_average_precision", "f1", "subset_accuracy", "last"),
}
# Fields, or groups of them, that have an effect only with a certain value of another field.
USED_ONLY_WITH: dict[str, tuple[str, str]] = {
    "data.tiles.": ("data.pipeline", "liver_tiles"),
    "data.images.": ("data.pipeline", "image_folder"),
    "data.allow_leak": ("data.pipeline", "image_folder"),
    "loss.class_balanced_beta": ("loss.class_weights", "class_balanced"),
    "loss.focal_gamma": ("loss.name", "focal"),
    "loss.asymmetric_": ("loss.name", "asymmetric"),
    "optimizer.momentum": ("optimizer.name", "sgd"),
    "optimizer.beta1": ("optimizer.name", "adamw"),
    "optimizer.beta2": ("optimizer.name", "adamw"),
}
_LENGTHS = {"data.mean": 3, "data.std": 3}  # red, green, blue


def check_values(config: ConfigDict, fields: Collection[str] = LEGAL_VALUES) -> None:
    """Check fields that `LEGAL_VALUES` lists.

    Args:
      config: the config.
      fields: those to check; others than `LEGAL_VALUES` lists are not checked.

    Raises:
      RunError: values that are not legal; the message has a line for each.
    """
    legal = LEGAL_VALUES | (MULTILABEL_VALUES if config.data.task == "multilabel" else {})
    checked = {field: values for field, values in legal.items() if field in fields}
    if problems := [problem for field, values in checked.items() for problem in _problems(config, field, values)]:
        raise RunError("\n".join(problems))


def check_used(config: ConfigDict, fields: Iterable[str]) -> None:
    """Check that fields which a user sets have an effect.

    Args:
      config: the config with their values.
      fields: the fields that were set.

    Raises:
      RunError: one has none, because of the value of another field.
    """
    for field in fields:
        for prefix, (other, needed) in USED_ONLY_WITH.items():
            if field.startswith(prefix) and (value := _value(config, other)) != needed:
                raise RunError(f"--config.{field} has an effect only with {other}={needed}, and it is {value}: drop it")


def check_data_root(config: ConfigDict) -> None:
    """Check that training has images: only a config that says so trains on synthetic ones.

    Raises:
      RunError: `data.root` is empty, and `data.synthetic` is not set.
    """
    if not (config.data.root or config.data.synthetic):
        raise RunError(
            "data.root is empty: give your images with --config.data.root=PATH, or train on the built-in synthetic "
            "images with --config.data.synthetic=true"
        )


def _problems(config: ConfigDict, field: str, legal: str | tuple[str, ...]) -> Iterator[str]:
    """Yield what is wrong with the value of a field, if anything is."""
    value = _value(config, field)
    if isinstance(legal, tuple):
        if value not in legal:
            yield f"{field}='{value}' is not one of {', '.join(legal)}{did_you_mean(str(value), legal)}"
        return
    numbers = value if isinstance(value, tuple) else (value,)
    if len(numbers) != _LENGTHS.get(field, len(numbers)):
        yield f"{field}={value} is not {_LENGTHS[field]} numbers, for red, green and blue"
    elif not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        yield f"{field}={value} is not a finite number" if numbers == (value,) else f"{field}={value} are not numbers"
    elif not all(interval.contains(legal, number) for number in numbers):
        hint = "; it is for pixels in 0 … 1: divide by 255" if field in ("data.mean", "data.std") else ""
        yield f"{field}={value} is not {interval.describe(legal)}{hint}"


def _value(config: ConfigDict, field: str) -> Any:
    value: Any = config
    for name in field.split("."):
        value = value[name]
    return value
