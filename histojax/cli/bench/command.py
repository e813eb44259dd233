"""`histojax bench`: the speed of training, prediction and input on this machine, optionally beside a peer."""

import argparse
import json
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb, refuse_unused
from histojax.core.errors import RunError

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers

DEFAULT_MODELS = ("resnet50", "dala_resnet50", "swin_tiny_patch4_window7_224", "ldcsf")
_DTYPES = ["float32", "bfloat16"]


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax bench` and its four benchmarks."""
    parser = add_verb(
        subparsers,
        "bench",
        run,
        summary="speed on this machine, optionally beside PyTorch: step, infer, input, slide",
        description="Measures speed on this machine. With --against, histojax and the peer run in separate processes "
        "that take turns; the table gives medians, quartiles and ratios. Run nothing else meanwhile.",
        examples=[
            "histojax bench step --against torch",
            "histojax bench input --root PATH --against torch",
            "histojax bench input --cache resized --crop_scale 1 --processes 8 --step 100 --batch_size 2048",
            "histojax bench slide SLIDE --tile_mpp 0.5 --against deepzoom",
        ],
    )
    works = parser.add_subparsers(dest="work", metavar="WORK", required=True, parser_class=CommandParser)
    for name, summary, example in (
        ("step", "training steps of models with random weights, without reading images", "--against torch"),
        (
            "infer",
            "predictions of models with random weights, without reading images",
            "--model resnet50 --json a.json",
        ),
    ):
        model = _add_work(works, name, summary, example)
        _add_model_flags(model)
        _add_side_flags(model)
        _add_round_flags(model, "torch")
    reading = _add_work(works, "input", "augmented batches from image files, without a model", "--against torch")
    _add_input_flags(reading)
    _add_round_flags(reading, "torch")
    slide = _add_work(works, "slide", "tissue tiles of a whole slide, without a model", "SLIDE --tile_mpp 0.5")
    _add_slide_flags(slide)
    _add_round_flags(slide, "deepzoom")
    return parser


def _add_work(works: "Subparsers", name: str, summary: str, example: str) -> CommandParser:
    parser = add_verb(
        works,
        name,
        run,
        summary=summary,
        description=f"Measures {summary}.",
        examples=[f"histojax bench {name} {example}"],
    )
    return parser


def _add_model_flags(parser: CommandParser) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME",
        nargs="+",
        default=list(DEFAULT_MODELS),
        help=f"models, as `histojax models` lists them (default: {', '.join(DEFAULT_MODELS)})",
    )
    parser.add_argument(
        "--options", metavar="JSON", type=_json_object, default={}, help="model options, such as '{\"dropout\": 0}'"
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="compute type of histojax (default: float32)"
    )
    parser.add_argument("--remat", action="store_true", help="recompute blocks in the backward pass, like model.remat")
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw", help="default: adamw")
    parser.add_argument(
        "--cpu_devices",
        metavar="N",
        type=flags.positive,
        default=2,
        help="virtual CPU devices, like sharding.cpu_devices (default: 2)",
    )


def _add_side_flags(parser: CommandParser) -> None:
    parser.add_argument(
        "--peer_dtype",
        nargs="+",
        choices=_DTYPES,
        default=["float32"],
        help="compute types of PyTorch, one side each; bfloat16 uses autocast (default: float32)",
    )
    parser.add_argument("--peer_compile", action="store_true", help="compile the PyTorch model with torch.compile")
    parser.add_argument(
        "--huge_pages",
        choices=["none", "ours", "both"],
        default="none",
        help="sides that run with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 (default: none)",
    )
    parser.add_argument(
        "--skip_startup",
        dest="startup",
        action="store_false",
        help="do not measure compilation and the time to the first repeat",
    )
    parser.add_argument("--find_batch", action="store_true", help="also find the largest batch that fits into memory")
    parser.add_argument(
        "--memory_gib",
        metavar="GIB",
        type=flags.number_in("[0, inf)"),
        default=0.0,
        help="memory limit of --find_batch in GiB (default: 90 %% of the free memory)",
    )
    parser.add_argument(
        "--profile",
        type=pathlib.Path,
        metavar="DIR",
        help="write a trace (Perfetto, TensorBoard) and print the costliest operations",
    )


def _add_input_flags(parser: CommandParser) -> None:
    parser.add_argument(
        "--root", metavar="PATH", type=pathlib.Path, help="BreakHis images (default: synthetic ones, 700×460 pixels)"
    )
    parser.add_argument(
        "--crop_scale",
        metavar="X",
        type=flags.number_in("(0, 1]"),
        default=0.6,
        help="like data.augment.crop_scale (default: 0.6)",
    )
    parser.add_argument(
        "--colour_jitter",
        metavar="X",
        type=flags.number_in("[0, 1)"),
        default=0.1,
        help="like data.augment.colour_jitter (default: 0.1)",
    )
    parser.add_argument(
        "--cache",
        choices=["none", "resized", "decoded"],
        default="none",
        help="like data.cache; written before the first round (default: none)",
    )
    parser.add_argument(
        "--cache_dir", metavar="DIR", default="", help="like data.cache_dir (default: beside the prepared dataset)"
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=flags.not_negative,
        default=0,
        help="like data.threads; 0: one per core (default: 0)",
    )
    parser.add_argument(
        "--workers", metavar="N", type=flags.not_negative, default=0, help="like data.workers (default: 0)"
    )
    parser.add_argument(
        "--peer_workers",
        metavar="N",
        type=flags.not_negative,
        default=2,
        help="num_workers of the PyTorch DataLoader (default: 2)",
    )
    parser.add_argument(
        "--processes",
        metavar="N",
        type=flags.positive,
        help="measure this host with N processes at the same time, one per device; each reads its share of every "
        "batch, and threads and workers are divided among them (default: one process, alone or against a peer)",
    )
    parser.add_argument(
        "--step",
        metavar="MS",
        type=flags.number_in("(0, inf)"),
        help="with --processes: also say whether a training step of MS milliseconds with --batch_size images per host "
        "waits for images",
    )


def _add_slide_flags(parser: CommandParser) -> None:
    parser.add_argument("slide", type=pathlib.Path, metavar="SLIDE", help="slide that OpenSlide can read")
    parser.add_argument(
        "--mpp",
        metavar="UM",
        type=flags.number_in("(0, inf)"),
        help="µm per level-0 pixel, if the slide does not state it",
    )
    parser.add_argument(
        "--tile_mpp", metavar="UM", type=flags.number_in("(0, inf)"), help="µm per tile pixel (default: the slide's)"
    )
    parser.add_argument("--tissue", action="store_true", help="also time tissue detection, every round")
    flags.add_threads(parser, "reader threads, on both sides", default=2)


def _add_round_flags(parser: CommandParser, peer: str) -> None:
    parser.add_argument("--against", choices=[peer], help="peer to compare with (default: none)")
    flags.add_batch_size(parser, default=16)
    parser.add_argument(
        "--image_size", metavar="PIXELS", type=flags.positive, default=224, help="side of an image (default: 224)"
    )
    parser.add_argument("--rounds", metavar="N", type=flags.positive, default=7, help="rounds per side (default: 7)")
    parser.add_argument(
        "--round_seconds",
        metavar="S",
        type=flags.number_in("(0, inf)"),
        default=5.0,
        help="approximate length of a round (default: 5)",
    )
    flags.add_json(parser, "all measurements")


def _check_models(names: Sequence[str]) -> None:
    """Check names before the first model is measured; jax is imported only if there are any.

    Raises:
      RunError: an unknown model.
    """
    for name in names:
        from histojax import models

        try:
            models.spec(name)
        except ValueError as error:
            raise RunError(f"--model: {error}") from error


def _json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"'{text}' is not a JSON object such as '{{\"dropout\": 0}}'")
    return value


def run(args: argparse.Namespace) -> None:
    """Measure, and print a table for each model."""
    refuse_unused(args, bool(args.against), ["--peer_dtype", "--peer_compile", "--peer_workers"], "with --against")
    refuse_unused(args, getattr(args, "find_batch", False), ["--memory_gib"], "with --find_batch")
    processes = getattr(args, "processes", None)
    refuse_unused(args, bool(processes), ["--step"], "with --processes")
    _check_models([model for model in getattr(args, "model", ()) if model not in DEFAULT_MODELS])
    from histojax.cli.bench import benchmarks, host_input, tables
    from histojax.core import machine
    from histojax.core.files import atomic_write

    printed = args.json != "-"
    described = machine.describe() | {"glibc_tunables": os.environ.get("GLIBC_TUNABLES", "")}
    if printed:
        print(f"{described['processor']}, {described['cores']} cores", flush=True)
    settings = {
        key: str(value) if isinstance(value, pathlib.Path) else value
        for key, value in vars(args).items()
        if key not in ("run", "given")
    }
    results: dict[str, Any] = {"machine": described, "settings": settings, "results": []}
    title = f"batches of {args.batch_size} × {args.image_size}×{args.image_size}, {args.rounds} rounds"
    for model in getattr(args, "model", [""]):
        if model:
            result, subject = benchmarks.compiled(args, model), model
        elif args.work == "input":
            result = host_input.measure(args) if processes else benchmarks.images(args)
            subject = f"{result['images']} images of {result['root']}"
        else:
            result = benchmarks.slide(args)
            subject = f"{result['images']} tissue tiles of {result['mpp']:g} µm/px of {result['slide']}"
        results["results"].append(result)
        if printed:
            lines = [tables.table(result), *(host_input.text(result) if processes else [])]
            print("\n".join([f"\n{args.work}: {subject}, {title}", *lines]), flush=True)
        if args.json and printed:
            with atomic_write(pathlib.Path(args.json)) as temporary:
                temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if not printed:
        print(json.dumps(results, indent=1, ensure_ascii=False))
