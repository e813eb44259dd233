"""`histojax bench`: how fast training, prediction and reading are here, ours and somebody else's in turn."""

import argparse
import json
import pathlib
from typing import Any

from histojax.cli import console
from histojax.core.errors import RunError

DEFAULT_MODELS = ("resnet50", "dala_resnet50", "swin_tiny_patch4_window7_224", "ldcsf")


def main(words: list[str]) -> None:
    """Runs `histojax bench` with these words; whatever a user can mend is told in words, with exit code 1."""
    given = _parser().parse_args(words)
    console.configure_logging()
    with console.errors_in_words():
        _run(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "histojax bench",
        description="Each side is a process of its own that is asked for rounds in turn, while the other one idles: "
        "medians, quartiles, ratios of the same machine at the same time. The machine should do nothing else.",
    )
    verbs = parser.add_subparsers(dest="work", required=True)
    step = verbs.add_parser("step", help="training steps of models with random weights, without reading images")
    infer = verbs.add_parser("infer", help="predictions of models with random weights, without reading images")
    for one in (step, infer):
        one.add_argument("--model", nargs="+", default=list(DEFAULT_MODELS), help="names that `histojax models` lists")
        one.add_argument("--options", type=json.loads, default={}, help="of the model, as JSON: '{\"dropout\": 0}'")
        one.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of our computation")
        one.add_argument("--peer_dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"],
                         help="of PyTorch's; bfloat16 is its autocast; several: a contestant each")  # fmt: skip
        one.add_argument("--peer_compile", action="store_true", help="PyTorch with torch.compile")
        one.add_argument("--remat", action="store_true", help="as model.remat of a config: less memory, more time")
        one.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
        one.add_argument("--huge_pages", choices=["none", "ours", "both"], default="none",
                         help="who gets GLIBC_TUNABLES=glibc.malloc.hugetlb=1")  # fmt: skip
        one.add_argument("--cpu_devices", type=int, default=2, help="as sharding.cpu_devices of a config")
        one.add_argument("--skip_startup", dest="startup", action="store_false",
                         help="does not measure compilation and the time to the first repeat")  # fmt: skip
        one.add_argument("--find_batch", action="store_true", help="tells the largest batch that fits into memory")
        one.add_argument("--memory_gib", type=float, default=0.0,
                         help="memory that --find_batch may take; default: nine tenths of what is free")  # fmt: skip
        one.add_argument("--profile", type=pathlib.Path, metavar="DIR",
                         help="a trace of ours for Perfetto or TensorBoard; tells what costs most")  # fmt: skip
    reading = verbs.add_parser("input", help="augmented batches from files of images, without a model")
    reading.add_argument("--root", type=pathlib.Path, help="BreakHis's images; default: computer-made ones, 700×460")
    reading.add_argument("--crop_scale", type=float, default=0.6, help="as data.augment.crop_scale of a config")
    reading.add_argument("--colour_jitter", type=float, default=0.1, help="as data.augment.colour_jitter")
    reading.add_argument("--cache", choices=["none", "resized", "decoded"], default="none",
                         help="as data.cache of a config: written before it begins")  # fmt: skip
    reading.add_argument("--threads", type=int, default=4, help="as data.threads of a config")
    reading.add_argument("--workers", type=int, default=0, help="as data.workers of a config")
    reading.add_argument("--peer_workers", type=int, default=2, help="num_workers of PyTorch's DataLoader")
    slide = verbs.add_parser("slide", help="tissue tiles of a whole slide, without a model")
    slide.add_argument("slide", type=pathlib.Path, metavar="SLIDE")
    slide.add_argument("--mpp", type=float, help="µm per level-0 pixel, where the slide does not say")
    slide.add_argument("--tile_mpp", type=float, help="µm per pixel of a tile; default: the slide's")
    slide.add_argument("--tissue", action="store_true", help="our rounds find the tissue, too, each anew")
    slide.add_argument("--threads", type=int, default=2, help="that read, on both sides")
    for one in (step, infer, reading, slide):
        peers = ["deepzoom"] if one is slide else ["torch"]
        one.add_argument("--against", choices=peers, help="who else; default: ours alone")
        one.add_argument("--batch_size", type=int, default=16)
        one.add_argument("--image_size", type=int, default=224)
        one.add_argument("--rounds", type=int, default=7, help="of each side")
        one.add_argument("--round_seconds", type=float, default=5.0, help="about how long a round takes")
        one.add_argument("--json", type=pathlib.Path, metavar="FILE", help="writes all that was measured")
    return parser


def _run(given: argparse.Namespace) -> None:
    # Behind the words, which need none of it.
    from histojax.cli.bench import benchmarks, tables
    from histojax.core.files import atomic_write

    if given.rounds < 1 or given.batch_size < 1:
        raise RunError("--rounds and --batch_size are at least 1")
    machine = benchmarks.machine()
    print(f"{machine['processor']}, {machine['cores']} cores", flush=True)
    settings = {key: str(value) if isinstance(value, pathlib.Path) else value for key, value in vars(given).items()}
    whole: dict[str, Any] = {"machine": machine, "settings": settings, "results": []}
    title = f"batches of {given.batch_size} × {given.image_size}×{given.image_size}, {given.rounds} rounds"
    for model in getattr(given, "model", [""]):
        if model:
            found, what = benchmarks.compiled(given, model), model
        elif given.work == "input":
            found = benchmarks.images(given)
            what = f"{found['images']} images of {found['root']}"
        else:
            found = benchmarks.slide(given)
            what = f"{found['images']} tissue tiles of {found['mpp']:g} µm/px of {found['slide']}"
        print(f"\n{given.work}: {what}, {title}\n{tables.table(found)}", flush=True)
        whole["results"].append(found)
        if given.json:
            with atomic_write(given.json) as temporary:
                temporary.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
