"""`histojax explain`: which parts of images a model's predictions rest on."""

import argparse
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb, refuse_unused

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers
    from histojax.inference.explain.dt_grad_cam import Rule
    from histojax.inference.explain.explain import Explainer, Source
    from histojax.inference.predict.images import ImageRef

_log = logging.getLogger(__name__)
_COARSE = 4  # positions along a side: a map with fewer says little


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax explain`."""
    parser = add_verb(
        subparsers,
        "explain",
        run,
        summary="show where a model looks: Grad-CAM, DT Grad-CAM, and their sanity checks",
        description="Draws Grad-CAM overlays of a model's predictions and, with dt_grad_cam, masks and GeoJSON "
        "contours. Research use only.",
        examples=["histojax explain runs/dala_100x IMAGES --output explained --target all --check"],
    )
    flags.add_run(parser)
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="images, folders, globs, lists (.csv: path), zip archives"
    )
    flags.add_output(parser, "folder to write; its content is replaced")
    parser.add_argument(
        "--method", choices=("grad_cam", "dt_grad_cam"), default="dt_grad_cam", help="default: dt_grad_cam"
    )
    parser.add_argument(
        "--target", default="predicted", help="class to explain: a name, all, or predicted (default: predicted)"
    )
    parser.add_argument(
        "--layer", default="", help="feature map (default: the last; conv5 for VGG, the last but one for ViT)"
    )
    parser.add_argument(
        "--threshold",
        default="otsu",
        help="dt_grad_cam: otsu, percentile:90 or mean_sd:1 (default: otsu). The paper's own rule is not public.",
    )
    parser.add_argument(
        "--min_part",
        metavar="FRACTION",
        type=float,
        default=0.01,
        help="smallest part or hole that is kept, as a fraction of the image (default: 0.01)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="run the sanity checks: randomised weights, background, deletion, insertion",
    )
    flags.add_seed(parser, "random seed for the sanity checks")
    flags.add_batch_size(parser, default=8)
    return parser


def run(args: argparse.Namespace) -> None:
    """Explain."""
    from histojax.inference.explain.dt_grad_cam import Rule
    from histojax.inference.predict import images

    refuse_unused(args, args.method == "dt_grad_cam", ["--threshold", "--min_part"], "with --method dt_grad_cam")
    refuse_unused(args, args.check, ["--seed"], "with --check")
    rule = Rule.parse(args.threshold) if args.method == "dt_grad_cam" else None
    refs = images.find(args.images)
    _explain(_explainer(args, rule), refs, args)


def _explainer(args: argparse.Namespace, rule: "Rule | None") -> "Explainer":
    # Only now, so that a wrong flag or path is reported without waiting for jax.
    from histojax.distributed import runtime
    from histojax.inference.explain.explain import Explainer
    from histojax.inference.predictor import Predictor

    runtime.prepare()
    predictor = Predictor.load(args.run_path, batch_size=args.batch_size)
    explainer = Explainer(predictor, layer=args.layer, target=args.target, rule=rule, min_part=args.min_part)
    height, width = explainer.cam.layers[explainer.cam.layer]
    if min(height, width) < _COARSE:
        finer = ", ".join(f"{n} {h}×{w}" for n, (h, w) in explainer.cam.layers.items() if min(h, w) >= _COARSE)
        _log.warning(
            "%s has %d×%d positions for images of %d pixels: the map is coarse (finer layers for --layer: %s)",
            explainer.cam.layer, height, width, predictor.image_size, finer or "none",
        )  # fmt: skip
    return explainer


def _explain(explainer: "Explainer", refs: "Sequence[ImageRef]", args: argparse.Namespace) -> None:
    from histojax.core.files import write_json
    from histojax.inference.explain import checks, explain

    unreadable: list[str] = []
    classes = explainer.predictor.classes
    summary = explain.write(explainer, _read(refs, classes, unreadable), args.output)
    for image in summary["images"]:
        for target in image["targets"]:
            marked = (
                f", {target['marked_share']:.1%} marked in {len(target['parts'])} parts" if "parts" in target else ""
            )
            label = f", true label: {image['label']}" if image["label"] else ""
            print(f"{image['folder']}  {target['class']}: {target['probability']:.3f}{label}{marked}")
    print(f"{len(summary['images'])} images in {args.output}; see contact_sheet.png and explanations.json")
    if unreadable:
        print(f"{len(unreadable)} unreadable: {', '.join(unreadable)}")
    if args.check:
        results = checks.check(explainer, (source.pixels for source in _read(refs, classes, [])), seed=args.seed)
        write_json(args.output / "checks.json", results)
        print(checks.format_checks(results))


def _read(refs: "Sequence[ImageRef]", classes: "Sequence[str]", unreadable: list[str]) -> "Iterator[Source]":
    """Yield one image at a time; log images that cannot be read, and add their ids to `unreadable`."""
    from histojax.inference.explain import explain
    from histojax.inference.explain.labels import true_label
    from histojax.inference.predict.image_reader import ImageReader, UnreadableError

    names = explain.file_names(pathlib.PurePath(ref.image_id).stem for ref in refs)
    with ImageReader() as reader:
        for ref, name in zip(refs, names, strict=True):
            try:
                yield explain.Source(name, ref.image_id, reader.read(ref), true_label(ref, classes))
            except UnreadableError as error:
                _log.warning("%s: %s", ref.image_id, error)
                unreadable.append(ref.image_id)
