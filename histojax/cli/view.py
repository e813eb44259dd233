"""`histojax view`: the results of other commands in a browser."""

import argparse
import contextlib
import pathlib
import webbrowser
from collections.abc import Iterator
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb, refuse_unused
from histojax.core import extras
from histojax.core.errors import RunError

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers
    from histojax.evaluation.view.site import Site

_STATIC_MPP, _STATIC_GB = 1.0, 4.0
_LAST_PORT = 65535


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax view`."""
    parser = add_verb(
        subparsers,
        "view",
        run,
        summary="look at slides, predictions and explanations in a browser",
        description="Shows what another command wrote: slides of `histojax slide` with deep zoom, labels, "
        "probabilities and figures; images of `histojax predict`, `histojax explain` or a run, sorted by error. The "
        "pages are served to this machine only, until Ctrl-C. With --static, they become a folder that opens without "
        "a server. Research use only.",
        examples=["histojax view slides_out", "histojax view slides_out --static pages --static_mpp 2"],
    )
    parser.add_argument(
        "results",
        metavar="DIR",
        type=pathlib.Path,
        help="--output of `histojax slide`, `histojax predict` or `histojax explain`, or a run",
    )
    parser.add_argument(
        "--slides", metavar="PATH", type=pathlib.Path, help="folder where the slides are now (default: where they were)"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="PATH",
        help="folders, lists or zip archives with the images of a table (default: the paths in the table)",
    )
    parser.add_argument("--port", type=_port, metavar="N", help="port to serve at (default: a free one)")
    parser.add_argument("--no_browser", action="store_true", help="print the address, and open no browser")
    parser.add_argument("--static", metavar="OUT", type=pathlib.Path, help="write a folder, and serve nothing")
    parser.add_argument(
        "--static_mpp",
        metavar="UM",
        type=flags.number_in("(0, inf)"),
        default=_STATIC_MPP,
        help=f"finest µm per pixel of the slides in that folder (default: {_STATIC_MPP:g})",
    )
    parser.add_argument(
        "--static_gb",
        metavar="GB",
        type=flags.number_in("(0, inf)"),
        default=_STATIC_GB,
        help=f"refuse to write slides that need about more than so many GB (default: {_STATIC_GB:g})",
    )
    parser.set_defaults(interrupted="the viewer has ended")
    return parser


def _port(text: str) -> int:
    """Parse the number of a port."""
    number = flags.positive(text)
    if number > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{number} is not a port, 1 to {_LAST_PORT}")
    return number


def run(args: argparse.Namespace) -> None:
    """Serve the pages, or write them."""
    from histojax import __version__
    from histojax.evaluation.view import static

    static_only = ["--static_mpp", "--static_gb"]
    refuse_unused(args, args.static is not None, static_only, "with --static")
    refuse_unused(args, args.static is None, ["--port", "--no_browser"], "without --static")
    with _site(args) as site:
        if args.static is None:
            _serve(site, args.port or 0, open_browser=not args.no_browser)
            return
        size = static.write(site, args.static, __version__)
        print(f"{size / 1e6:.1f} MB in {args.static}; open {args.static / 'index.html'} in a browser")


def _serve(site: "Site", port: int, *, open_browser: bool) -> None:
    """Serve until Ctrl-C."""
    from histojax.evaluation.view.server import Server

    with Server(site, port) as server:
        print(f"{server.url}\nOnly this machine can open this address. Ctrl-C ends the viewer.", flush=True)
        if open_browser:
            webbrowser.open(server.url)
        server.serve_forever()


@contextlib.contextmanager
def _site(args: argparse.Namespace) -> "Iterator[Site]":
    """The pages of DIR, by what it holds.

    Raises:
      RunError: DIR holds nothing that can be viewed, or a flag has no effect.
    """
    folder = args.results
    if folder.is_dir() and ((folder / "slides.csv").is_file() or any(folder.glob("*/slide.json"))):
        refuse_unused(args, False, ["--images"], "with a table of predictions")
        with _cohort(args) as site:
            yield site
        return
    refuse_unused(args, False, ["--slides", "--static_mpp", "--static_gb"], "with slides")
    from histojax.inference import galleries

    if (folder / "slide.json").is_file():
        raise RunError(f"{folder} is one slide of a cohort: give the folder above it, {folder.resolve().parent}")
    if (folder / "explanations.json").is_file():
        refuse_unused(args, False, ["--images"], "with a table of predictions")
        yield galleries.of_explanations(folder)
        return
    with galleries.of_predictions(folder, args.images) as gallery:
        yield gallery


@contextlib.contextmanager
def _cohort(args: argparse.Namespace) -> "Iterator[Site]":
    extras.require("slides", "histojax view of slides")
    from histojax.slides.view.cohort_site import CohortSite

    finest = None if args.static is None else args.static_mpp
    site = CohortSite(args.results, args.slides, finest)
    with contextlib.closing(site):
        if args.static is not None and (size := site.size() / 1e9) > args.static_gb:
            raise RunError(
                f"--static={args.static} would need about {size:.1f} GB, more than --static_gb={args.static_gb:g}: "
                f"raise that, or take coarser slides than --static_mpp={args.static_mpp:g}"
            )
        yield site
