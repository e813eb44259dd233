"""`histojax embed`: features of images and slides, for probes and for other programs."""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb, refuse_unused
from histojax.core.errors import RunError

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers
    from histojax.inference.embed.embedder import Embedder


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax embed`."""
    parser = add_verb(
        subparsers,
        "embed",
        run,
        summary="features of images or slides, from a run or from pretrained weights",
        description="Writes the features that a network computes from images, as Parquet or npz. The network is that "
        "of RUN, or with --weights a pretrained one. Rerun the same command to resume after an interruption. Images "
        "that cannot be read are listed in <stem of --output>.failed.csv; exit code 1 if none can be read. Research "
        "use only.",
        examples=[
            "histojax embed runs/dala_100x IMAGES --output features.parquet",
            "histojax embed --model resnet50 --weights model.pth IMAGES --output features.parquet --layer layer3",
        ],
    )
    parser.add_argument(
        "paths",
        metavar="RUN PATH",
        nargs="+",
        help="without --weights, first the work directory or checkpoint of the model; then images, folders, globs, "
        "lists (.csv: path[,patient_id][,label][,…]), zip archives",
    )
    flags.advise_positional_run(parser)
    flags.add_output(parser, "file of features, .parquet or .npz")
    network = parser.add_argument_group("instead of RUN")
    network.add_argument("--model", metavar="NAME", help="model of the weights, as `histojax models` lists it")
    network.add_argument(
        "--weights", metavar="FILE", help="pretrained weights: a file, hf:OWNER/NAME[/FILE]; or `random`"
    )
    network.add_argument(
        "--prefix",
        default="",
        help="one of several networks in the file: its keys or the beginning of its names (default: found by name)",
    )
    flags.add_config(
        parser,
        required=False,
        help="instead of --model: an experiment, NAME[:VARIANT], with the model, its options and its normalisation",
    )
    network.add_argument(
        "--image_size", metavar="PIXELS", type=flags.positive, default=0, help="input size (default: the config's, 224)"
    )
    parser.add_argument(
        "--layer",
        metavar="NAME",
        default="pooled",
        help="pooled, what the classifier sees; or a feature map, such as layer3 or block12, whose mean over all "
        "positions is taken (default: pooled)",
    )
    flags.add_batch_size(parser)
    flags.add_threads(parser, "threads that read images")
    flags.add_shard(parser, "image")
    flags.add_redo(parser, "overwrite existing or partial results")
    parser.set_defaults(interrupted="interrupted: rerun the same command to resume")
    return parser


def run(args: argparse.Namespace) -> None:
    """Compute features."""
    from histojax.core import shards
    from histojax.evaluation import feature_files
    from histojax.inference.embed import image_facts
    from histojax.inference.predict import images

    from_weights = args.weights is not None
    refuse_unused(args, from_weights, ["--model", "--prefix", "--config", "--image_size"], "with --weights")
    if from_weights and (args.model is None) == (args.config is None):
        raise RunError("--weights needs the network: give either --model NAME or --config NAME[:VARIANT]")
    if args.overrides and args.config is None:
        raise RunError(f"--config.{args.overrides[0][0]}: has an effect only with --config; drop it")
    paths = args.paths if from_weights else args.paths[1:]
    if not paths:
        raise RunError("no images are named: give RUN and then images; or --model, --weights and images")
    feature_files.check_path(args.output, "--output")
    refs = images.find(paths)
    chosen = shards.share(list(zip(refs, image_facts.relative_ids(refs, paths), strict=True)), args.shard)
    if not chosen:
        raise RunError(f"--shard={args.shard}: there are fewer images than shards, and none for this one")

    # Only now, so that a wrong flag or path is reported without waiting for jax.
    from histojax.distributed import runtime
    from histojax.inference.embed import image_features

    runtime.prepare()
    embedder = _embedder(args)
    split = {} if from_weights else image_facts.read_split(_checkpoint(args.paths[0]))
    summary = image_features.run(
        [ref for ref, _ in chosen],
        [name for _, name in chosen],
        [image_facts.image_facts(ref, split) for ref, _ in chosen],
        embedder,
        args.output,
        threads=args.threads,
        redo=args.redo,
    )
    labels = ", ".join(f"{label} {count}" for label, count in summary.labels.items()) or "unknown"
    print(f"Images   {summary.images}, {embedder.width} features each, layer {embedder.layer}")
    print(f"Labels   {labels}; patients {summary.patients or 'unknown'}")
    print(f"Features {args.output}")
    if summary.failed:
        print(f"Unread   {summary.failed}, see {image_features.failures_path(args.output)}")
    if not summary.images:
        sys.exit("error: no image could be read. Fix the images, and rerun with --redo")


def _embedder(args: argparse.Namespace) -> "Embedder":
    from histojax.inference.embed import embedder
    from histojax.training import default_config, experiments

    how = {"layer": args.layer, "batch_size": args.batch_size}
    if args.weights is None:
        return embedder.Embedder.of_run(pathlib.Path(args.paths[0]), **how)
    if args.config is not None:
        config = experiments.read(args.config, args.overrides)
    else:
        config = default_config.base()
        config.model.name = args.model
    source = "" if args.weights == "random" else args.weights
    return embedder.Embedder.of_weights(
        embedder.configure(config, source, prefix=args.prefix, image_size=args.image_size), **how
    )


def _checkpoint(run: str) -> pathlib.Path:
    from histojax.training import checkpoint

    return checkpoint.find(pathlib.Path(run))
