"""`histojax bench`: the speed of training, prediction and input on this machine, optionally beside a peer."""

import argparse
import json
import pathlib
from typing import Any

from histojax.cli import console
from histojax.core.errors import RunError

DEFAULT_MODELS = ("resnet50", "dala_resnet50", "swin_tiny_patch4_window7_224", "ldcsf")


def main(words: list[str]) -> None:
    """Run `histojax bench`. User errors exit with code 1 and a message."""
    given = _parser().parse_args(words)
    console.configure_logging()
    with console.errors_in_words():
        _run(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "histojax bench",
        description="Measure speed on this machine. With --against, histojax and the peer run in separate processes that take "
        "turns; the table gives medians, quartiles and ratios. Run nothing else on the machine meanwhile.",
    )
    verbs = parser.add_subparsers(dest="work", required=True)
    step = verbs.add_parser("step", help="training steps of models with random weights, without reading images")
    infer = verbs.add_parser("infer", help="predictions of models with random weights, without reading images")
    for one in (step, infer):
        one.add_argument("--model", nargs="+", default=list(DEFAULT_MODELS),
                         help="models, as `histojax models` lists them (default: %(default)s)")  # fmt: skip
        one.add_argument("--options", type=json.loads, default={},
                         help="model options as JSON, for example '{\"dropout\": 0}'")  # fmt: skip
        one.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                         help="compute type of histojax (default: %(default)s)")  # fmt: skip
        one.add_argument("--peer_dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"],
                         help="compute types of PyTorch, one side each; bfloat16 uses autocast")  # fmt: skip
        one.add_argument("--peer_compile", action="store_true", help="compile the PyTorch model with torch.compile")
        one.add_argument("--remat", action="store_true",
                         help="recompute blocks in the backward pass, like model.remat")  # fmt: skip
        one.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw", help="default: %(default)s")
        one.add_argument("--huge_pages", choices=["none", "ours", "both"], default="none",
                         help="sides that run with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 (default: none)")  # fmt: skip
        one.add_argument("--cpu_devices", type=int, default=2,
                         help="virtual CPU devices, like sharding.cpu_devices (default: %(default)s)")  # fmt: skip
        one.add_argument("--skip_startup", dest="startup", action="store_false",
                         help="do not measure compilation and the time to the first repeat")  # fmt: skip
        one.add_argument("--find_batch", action="store_true", help="also find the largest batch that fits into memory")
        one.add_argument("--memory_gib", type=float, default=0.0,
                         help="memory limit of --find_batch in GiB (default: 90 %% of the free memory)")  # fmt: skip
        one.add_argument("--profile", type=pathlib.Path, metavar="DIR",
                         help="write a trace (Perfetto, TensorBoard) and print the costliest operations")  # fmt: skip
    reading = verbs.add_parser("input", help="augmented batches from image files, without a model")
    reading.add_argument("--root", type=pathlib.Path, help="BreakHis images (default: synthetic ones, 700×460 pixels)")
    reading.add_argument("--crop_scale", type=float, default=0.6,
                         help="like data.augment.crop_scale (default: %(default)s)")  # fmt: skip
    reading.add_argument("--colour_jitter", type=float, default=0.1,
                         help="like data.augment.colour_jitter (default: %(default)s)")  # fmt: skip
    reading.add_argument("--cache", choices=["none", "resized", "decoded"], default="none",
                         help="like data.cache; written before the first round (default: %(default)s)")  # fmt: skip
    reading.add_argument("--threads", type=int, default=4, help="like data.threads (default: %(default)s)")
    reading.add_argument("--workers", type=int, default=0, help="like data.workers (default: %(default)s)")
    reading.add_argument("--peer_workers", type=int, default=2,
                         help="num_workers of the PyTorch DataLoader (default: %(default)s)")  # fmt: skip
    slide = verbs.add_parser("slide", help="tissue tiles of a whole slide, without a model")
    slide.add_argument("slide", type=pathlib.Path, metavar="SLIDE")
    slide.add_argument("--mpp", type=float, help="µm per level-0 pixel, for a slide that does not state it")
    slide.add_argument("--tile_mpp", type=float, help="µm per tile pixel (default: the slide's)")
    slide.add_argument("--tissue", action="store_true", help="also time tissue detection, every round")
    slide.add_argument("--threads", type=int, default=2, help="reader threads, on both sides (default: %(default)s)")
    for one in (step, infer, reading, slide):
        peers = ["deepzoom"] if one is slide else ["torch"]
        one.add_argument("--against", choices=peers, help="peer to compare with (default: none)")
        one.add_argument("--batch_size", type=int, default=16, help="images per batch (default: %(default)s)")
        one.add_argument("--image_size", type=int, default=224, help="image side in pixels (default: %(default)s)")
        one.add_argument("--rounds", type=int, default=7, help="rounds per side (default: %(default)s)")
        one.add_argument("--round_seconds", type=float, default=5.0,
                         help="approximate length of a round in seconds (default: %(default)s)")  # fmt: skip
        one.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all measurements to FILE")
    return parser


def _run(given: argparse.Namespace) -> None:
    # Imported after parsing: --help needs none of it.
    from histojax.cli.bench import benchmarks, tables
    from histojax.core.files import atomic_write

    if given.rounds < 1 or given.batch_size < 1:
        raise RunError("--rounds and --batch_size must be at least 1")
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
