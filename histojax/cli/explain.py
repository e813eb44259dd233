"""`histojax explain …`: where in images a model saw what it says."""

import argparse
import importlib.util
import logging
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from histojax.cli import console

if TYPE_CHECKING:
    from histojax.inference.explain.dt_grad_cam import Rule
    from histojax.inference.explain.explain import Explainer, Source
    from histojax.inference.predict.images import ImageRef

_log = logging.getLogger(__name__)
_COARSE = 4  # positions along a side: a map of fewer says little


def main(words: list[str]) -> None:
    """Runs `histojax explain` with these words; whatever a user can mend is told in words, with exit code 1."""
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("error: pictures need matplotlib: pip install 'histojax[explain]'")
    parser = argparse.ArgumentParser(
        "histojax explain",
        description="Grad-CAM of a model's answers: overlays, and with dt_grad_cam masks and GeoJSON contours. "
        "Research use only.",
    )
    parser.add_argument("run", type=pathlib.Path, help="work directory or checkpoint of the model")
    parser.add_argument("images", nargs="+", help="images, folders, globs, lists (.csv: path), zip archives")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder; what is in it is replaced")
    parser.add_argument("--method", choices=("grad_cam", "dt_grad_cam"), default="dt_grad_cam")
    parser.add_argument("--target", default="predicted", help="a class, all, or predicted (default)")
    parser.add_argument(
        "--layer", default="", help="feature map; default: the last, of VGG conv5, of ViT the last but one"
    )
    parser.add_argument(
        "--threshold",
        default="otsu",
        help="dt_grad_cam: otsu (default), percentile:90, mean_sd:1. The paper's own rule is not public.",
    )
    parser.add_argument("--min_part", type=float, default=0.01, help="least share of the image of a part or a hole")
    parser.add_argument("--check", action="store_true", help="randomised weights, background, deletion and insertion")
    parser.add_argument("--seed", type=int, default=0, help="of the checks")
    parser.add_argument("--batch_size", type=int, default=8)
    given = parser.parse_args(words)

    console.configure_logging()
    with console.errors_in_words():
        from histojax.inference.explain.dt_grad_cam import Rule
        from histojax.inference.predict import images

        rule = Rule.parse(given.threshold) if given.method == "dt_grad_cam" else None
        refs = images.find(given.images)
        explainer = _explainer(given, rule)
        _explain(explainer, refs, given)


def _explainer(given: argparse.Namespace, rule: "Rule | None") -> "Explainer":
    # Behind the flags: --help and a misspelt one need no jax.
    from histojax.distributed import runtime
    from histojax.inference.explain.explain import Explainer
    from histojax.inference.predictor import Predictor

    runtime.prepare()
    predictor = Predictor.load(given.run, batch_size=given.batch_size)
    explainer = Explainer(predictor, layer=given.layer, target=given.target, rule=rule, min_part=given.min_part)
    height, width = explainer.cam.layers[explainer.cam.layer]
    if min(height, width) < _COARSE:
        finer = ", ".join(f"{n} {h}×{w}" for n, (h, w) in explainer.cam.layers.items() if min(h, w) >= _COARSE)
        _log.warning(
            "%s has %d×%d positions of images of %d pixels: the map is coarse (--layer takes %s)",
            explainer.cam.layer, height, width, predictor.image_size, finer,
        )  # fmt: skip
    return explainer


def _explain(explainer: "Explainer", refs: "Sequence[ImageRef]", given: argparse.Namespace) -> None:
    from histojax.core.files import write_json
    from histojax.inference.explain import checks, explain

    unreadable: list[str] = []
    summary = explain.write(explainer, _read(refs, unreadable), given.output)
    for image in summary["images"]:
        for one in image["targets"]:
            marked = f", {one['marked_share']:.1%} marked in {len(one['parts'])} parts" if "parts" in one else ""
            print(f"{image['folder']}  {one['class']}: {one['probability']:.3f}{marked}")
    print(f"{len(summary['images'])} images in {given.output}; see contact_sheet.png and explanations.json")
    if unreadable:
        print(f"{len(unreadable)} unreadable: {', '.join(unreadable)}")
    if given.check:
        found = checks.check(explainer, (source.pixels for source in _read(refs, [])), seed=given.seed)
        write_json(given.output / "checks.json", found)
        print(checks.lines(found))


def _read(refs: "Sequence[ImageRef]", unreadable: list[str]) -> "Iterator[Source]":
    """The images one after another; those that are none are told, and added to `unreadable`."""
    from histojax.inference.explain import explain
    from histojax.inference.predict.pixels import Reader, UnreadableError

    names = explain.file_names(pathlib.PurePath(ref.image_id).stem for ref in refs)
    with Reader() as reader:
        for ref, name in zip(refs, names, strict=True):
            try:
                yield explain.Source(name, ref.image_id, reader.read(ref))
            except UnreadableError as error:
                _log.warning("%s: %s", ref.image_id, error)
                unreadable.append(ref.image_id)
