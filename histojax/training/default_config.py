"""The fields that every experiment has, with the defaults that most of them share."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """A complete configuration; experiments change fields, never add any."""
    config = ConfigDict()
    config.seed = 0

    config.data = data = ConfigDict()
    data.pipeline = "breakhis"  # or liver_tiles: any multi-label set of tiles
    data.root = ""  # archive, folder or table (see the pipeline's README); empty: the embedded synthetic images
    data.prepared_dir = ""  # empty: $HISTOJAX_DATA, else ~/.cache/histojax
    data.magnification = "100X"  # BreakHis: 40X, 100X, 200X, 400X or all
    data.task = "binary"  # BreakHis: binary (benign, malignant) or subtype (the eight); liver_tiles: multilabel
    data.on_bad_image = "error"  # of preparation; or skip
    data.on_bad_record = "error"  # of training on what was prepared; or mask: named, and not learned from
    data.sampling = "natural"  # or balanced: every class equally often
    data.image_size = 224
    data.mpp = 0.0  # µm per pixel of the images as they lie on disk, for slides to match; 0: unknown
    data.mean = (0.485, 0.456, 0.406)  # ImageNet's, of values in 0 … 1
    data.std = (0.229, 0.224, 0.225)
    data.cache = "none"  # or decoded: pixels on disk, decoded once; resized: at image_size, not with random crops
    data.threads = 4  # that decode in each process
    data.workers = 0  # processes that decode; 0: threads only

    data.tiles = tiles = ConfigDict()  # of liver_tiles; see data_pipelines/liver_tiles/README.md
    tiles.labels = ()  # empty: interstitial, necrosis, non_tumor, tumor; of WSSS4LUAD's masks: tumor, stroma, normal
    tiles.layout = "auto"  # auto, table, names, folders or masks
    tiles.table = ""  # file name of the table below root, if there are several
    tiles.group_pattern = ""  # regular expression on file names with the groups patient, slide or both
    tiles.size = 224  # pixels of a tile that is cut from an image with a mask
    tiles.stride = 0  # pixels from tile to tile; 0: the size
    tiles.min_share = 0.05  # of a tile that a class must cover to be one of its labels
    tiles.mask_values = ()  # value of each label in the masks; empty: 0, 1, 2 … in their order
    tiles.keep_empty = False  # tiles without any label

    data.split = split = ConfigDict()
    # BreakHis: case, patient, image, folds, eva; tiles: auto, patient, slide, source, image, given. A longer name, such
    # as image_with_copies or case_deduplicated, says by itself what becomes of duplicates: data_pipelines/protocols.py
    split.protocol = "case"
    split.test_fraction = 0.25
    split.val_fraction = 0.2  # of what is not test
    split.seed = 0
    split.kfolds = 0  # k > 0: k-fold cross-validation, `fold` (0-based) is the test side
    split.fold = 0
    split.folds_dir = ""  # with dsfold1.txt … dsfold5.txt, for protocol=folds
    split.duplicates = "drop"  # or keep: identical images stay, together on one side; or ignore: on whatever sides

    data.augment = augment = ConfigDict()
    augment.flips = True
    augment.quarter_turns = True
    augment.crop_scale = 1.0  # least share of the area; 1: no crop
    augment.crop_ratio = 4 / 3
    augment.colour_jitter = 0.0
    augment.stain_jitter = 0.0
    augment.blur = 0.0  # greatest sigma in pixels

    config.model = model = ConfigDict()
    model.name = "resnet50"
    model.options = ConfigDict()  # of that model: see histojax/models
    model.module = ""  # importable Python module that registers a model of yours (histojax.models.register)
    model.pretrained = ""  # file of weights, or hf:OWNER/NAME; parts that it lacks start at random
    model.dtype = "float32"  # of the computation; parameters and statistics are float32
    model.remat = False

    config.train = train = ConfigDict()
    train.batch_size = 32  # global
    train.epochs = 50
    train.log_every = 10  # steps
    train.accumulate = 1  # micro-batches a step; BatchNorm sees micro-batches
    train.ema_decay = 0.0  # 0: off
    train.freeze_backbone_epochs = 0
    train.early_stopping = 0  # epochs without a better validation metric; 0: off
    # Of the validation side: loss, accuracy, f1; balanced_accuracy, gmean; with several labels subset_accuracy,
    # mean_average_precision.
    train.best_metric = "loss"
    # Of the positive of two classes, or of each of several labels, chosen on validation: f1, youden, sensitivity=0.95
    # (the greatest specificity that has it) or fixed (0.5).
    train.thresholds = "youden"
    # Statistics of the global batch, or device: of each device's share, as PyTorch's DistributedDataParallel has them.
    train.batch_norm = "global"
    train.watchdog = 1800.0  # seconds without a step after which a run ends, saying where it hangs; 0: never
    train.mixup = 0.0  # alpha of the Beta distribution; 0: off
    train.cutmix = 0.0

    config.loss = loss = ConfigDict()
    loss.name = "cross_entropy"  # or focal; with several labels, also asymmetric
    loss.label_smoothing = 0.0
    loss.class_weights = "none"  # none, inverse, class_balanced (Cui et al. 2019)
    loss.class_balanced_beta = 0.999
    loss.focal_gamma = 2.0
    loss.positive_weights = "none"  # several labels: none or balanced (negatives / positives)
    loss.asymmetric_gamma_positive = 0.0  # Ridnik et al. 2021
    loss.asymmetric_gamma_negative = 4.0
    loss.asymmetric_margin = 0.05

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"  # or sgd
    optimizer.learning_rate = 1e-3
    optimizer.head_multiplier = 1.0  # learning rate of head and attention relative to the backbone's
    optimizer.schedule = "cosine"  # or constant, after the warm-up
    optimizer.warmup_epochs = 1.0
    optimizer.weight_decay = 0.05  # of kernels only: not of biases, norms
    optimizer.momentum = 0.9  # sgd
    optimizer.beta1 = 0.9  # adamw
    optimizer.beta2 = 0.999
    optimizer.clip_norm = 0.0  # of the global gradient; 0: off

    config.paper = paper = ConfigDict()  # what a paper reports, printed beside the results; changes nothing
    paper.source = ""
    paper.accuracy = ConfigDict()  # of each model
    paper.label_accuracy = ConfigDict()  # of each label

    config.compare = compare = ConfigDict()
    compare.models = ()  # that `histojax compare` trains, one after another; no run looks at it

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_epochs = 1
    checkpoint.keep = 2  # last ones

    config.evaluation = evaluation = ConfigDict()
    evaluation.batch_size = 32
    evaluation.resamples = 2000  # of the bootstrap

    config.sharding = sharding = ConfigDict()
    sharding.fsdp = 1  # devices over which parameters and optimizer are sharded; the rest is data-parallel
    # Exceptions from "along the largest axis that fsdp divides": "REGEX=AXIS" or "REGEX=none" on a parameter's path, of
    # which the first that is found counts; `histojax shardings` prints the paths.
    sharding.rules = ()
    sharding.cpu_devices = 2  # virtual devices where there is no accelerator: two cores work better as two
    return config
