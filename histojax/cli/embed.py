"""`histojax embed`: features of images and slides, for probes and for other programs."""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb, refuse_unused
from histojax.cli.slide import add_min_tissue, add_overlap, add_slide_mpp
from histojax.core import extras
from histojax.core.errors import RunError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from data_pipelines.stain import StainNormalizer
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
        "that cannot be read are listed in <stem of --output>.failed.csv; exit code 1 if none can be read. If --output "
        "is a folder, the paths are slides: it gets one HDF5 file per slide with the features of the tissue tiles, in "
        "TRIDENT's layout. Research use only.",
        examples=[
            "histojax embed runs/dala_100x IMAGES --output features.parquet",
            "histojax embed --model resnet50 --weights resnet50.pth IMAGES --output features.parquet --layer layer3",
            "histojax embed runs/ldcsf SLIDES --output features",
        ],
    )
    parser.add_argument(
        "paths",
        metavar="RUN PATH",
        nargs="+",
        help="without --weights, first the work directory or checkpoint of the model; then images, folders, globs, "
        "lists (.csv: path[,patient_id][,label][,…]), zip archives; or slides, as `histojax slide` takes them",
    )
    flags.advise_positional_run(parser)
    flags.add_output(parser, "file of features, .parquet or .npz; of slides: a folder")
    network = parser.add_argument_group("instead of RUN")
    network.add_argument("--model", metavar="NAME", help="model of the weights, as `histojax models` lists it")
    network.add_argument(
        "--weights",
        metavar="FILE",
        help="pretrained weights: a file, hf:OWNER/NAME[@REVISION][/FILE], or a run; or `random`",
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
    network.add_argument(
        "--stain",
        choices=("macenko", "reinhard"),
        default="",
        help="bring each image to the colours of --stain_reference (default: a run's own normalisation)",
    )
    network.add_argument("--stain_reference", metavar="FILE", default="", help="the image with these colours")
    flags.add_layer(parser)
    flags.add_batch_size(parser)
    flags.add_threads(parser, "threads that read images")
    flags.add_shard(parser, "image or slide")
    flags.add_redo(parser, "overwrite existing or partial results")
    slides = parser.add_argument_group("slides")
    add_slide_mpp(slides)
    slides.add_argument(
        "--tile_um", metavar="UM", type=float, help="side of a tile in µm (default: that of the run's training tiles)"
    )
    add_overlap(slides)
    add_min_tissue(slides)
    parser.set_defaults(interrupted="interrupted: rerun the same command to resume")
    return parser


_WEIGHTS_FLAGS = ("--model", "--prefix", "--config", "--image_size", "--stain", "--stain_reference")
_SLIDE_FLAGS = ("--mpp", "--override_mpp", "--tile_um", "--overlap", "--min_tissue")


def run(args: argparse.Namespace) -> None:
    """Compute features."""
    from histojax.evaluation import feature_files

    from_weights = args.weights is not None
    refuse_unused(args, from_weights, _WEIGHTS_FLAGS, "with --weights")
    refuse_unused(args, bool(args.stain), ["--stain_reference"], "with --stain")
    if from_weights and (args.model is None) == (args.config is None):
        raise RunError("--weights needs the network: give either --model NAME or --config NAME[:VARIANT]")
    if args.overrides and args.config is None:
        raise RunError(f"--config.{args.overrides[0][0]}: has an effect only with --config; drop it")
    paths = args.paths if from_weights else args.paths[1:]
    if not paths:
        raise RunError("no images are named: give RUN and then images; or --model, --weights and images")
    slides = args.output.is_dir() or not args.output.suffix
    refuse_unused(args, slides, _SLIDE_FLAGS, "on slides, for which --output is a folder")
    if slides:
        _embed_slides(args, paths)
    else:
        feature_files.check_path(args.output, "--output")
        _embed_images(args, paths)


def _embed_images(args: argparse.Namespace, paths: list[str]) -> None:
    from histojax.core import shards
    from histojax.inference.embed import image_facts
    from histojax.inference.predict import images

    refs = images.find(paths)
    chosen = shards.share(list(zip(refs, image_facts.relative_ids(refs, paths), strict=True)), args.shard)
    if not chosen:
        raise RunError(f"--shard={args.shard}: there are fewer images than shards, and none for this one")
    embedder = _embedder(args)

    from histojax.inference.embed import image_features

    split = {} if args.weights is not None else image_facts.read_split(_checkpoint(args.paths[0]))
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
    if summary.not_normalised:
        print(f"Stains   {summary.not_normalised} images have too little tissue to be normalised, and are as they were")
    if summary.failed:
        print(f"Unread   {summary.failed}, see {image_features.failures_path(args.output)}")
    if not summary.images:
        sys.exit("error: no image could be read. Fix the images, and rerun with --redo")


def _embed_slides(args: argparse.Namespace, paths: list[str]) -> None:
    extras.require("slides", "histojax embed on slides")
    from histojax.core import shards
    from histojax.slides import cohort_jobs

    jobs = cohort_jobs.find(paths, args.mpp, override_mpp=args.override_mpp, output=args.output)
    jobs = shards.share(jobs, args.shard)
    embedder = _embedder(args)

    from histojax.inference.embed import slide_features

    tile_um = embedder.tile_um if args.tile_um is None else args.tile_um
    if tile_um is None:
        raise RunError(
            "--tile_um is not given, and the network does not state it: give the side in µm of its training images "
            "(side in pixels × µm per pixel)"
        )
    settings = slide_features.Settings(tile_um, args.overlap, args.min_tissue, args.threads)
    failed = slide_features.run(jobs, embedder, settings, args.output, redo=args.redo)
    print(f"{len(jobs) - len(failed)} of {len(jobs)} slides are in {args.output}, {embedder.width} features per tile")
    if failed:
        lines = [f"  {name}: {reason}" for name, reason in failed.items()]
        sys.exit("\n".join([f"error: {len(failed)} of {len(jobs)} slides failed:", *lines]))


def _embedder(args: argparse.Namespace) -> "Embedder":
    # Only now, so that a wrong flag or path is reported without waiting for jax.
    from histojax.distributed import runtime

    runtime.prepare()
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
    config = embedder.configure(config, source, prefix=args.prefix, image_size=args.image_size)
    return embedder.Embedder.of_weights(config, stain=_stain(args, config), **how)


def _stain(args: argparse.Namespace, config: "ConfigDict") -> "StainNormalizer | None":
    """Return the stain normalisation of the flags, else of the config; there is no run whose images it could fit."""
    from histojax.core.directories import expand_user
    from histojax.training import stains

    method = args.stain or config.data.stain.method
    reference = args.stain_reference if args.stain else config.data.stain.reference
    if method == stains.NONE:
        return None
    if not reference:
        raise RunError(f"--stain {method} with --weights needs a reference image: give --stain_reference FILE")
    return stains.of_reference(method, expand_user(reference), config.data.image_size)


def _checkpoint(run: str) -> pathlib.Path:
    from histojax.training import checkpoint

    return checkpoint.find(pathlib.Path(run))
