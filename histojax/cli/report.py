"""`histojax report`: the scores of models on one self-contained page."""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb
from histojax.core.errors import RunError
from histojax.core.files import atomic_write

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers
    from histojax.evaluation.report.sources import Source


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax report`."""
    parser = add_verb(
        subparsers,
        "report",
        run,
        summary="one page of metrics, curves, calibration, errors, comparisons; model card",
        description="Writes one page of metrics with intervals, confusion matrices, curves, calibration, thresholds, "
        "patients, worst errors and paired comparisons, without scripts or network: report.html, report.json, "
        "metrics.csv and, for a run, MODEL_CARD.md. Research use only.",
        examples=[
            "histojax report runs/dala_100x --output report_out",
            "histojax report runs/dala_100x runs/resnet50_100x theirs.csv --output comparison --images BreaKHis_v1",
        ],
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="RUN_OR_PREDICTIONS",
        help="work directories, or tables (.csv, .parquet) of any framework: image_id, patient_id, magnification, "
        "split, label, prob_<class>…, or label_<name>… and prob_<name>…",
    )
    flags.advise_positional_run(parser)
    flags.add_output(parser, "folder to write", default="report")
    parser.add_argument(
        "--names", default="", help="names of the sources on the page, as A,B,C (default: folder and file names)"
    )
    _add_choices(parser)
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="PATH",
        help="folders, lists or zip archives with the thumbnails' images",
    )
    parser.add_argument("--audit", metavar="FILE", type=pathlib.Path, help="audit.json that `histojax audit` wrote")
    parser.add_argument(
        "--worst", type=flags.not_negative, default=24, metavar="N", help="number of worst errors to show (default: 24)"
    )
    parser.add_argument(
        "--license", default="", help="license of the weights, for the model card (default: not stated)"
    )
    flags.add_verbose(parser)
    parser.set_defaults(interrupted="interrupted: the files written so far are complete")
    return parser


def _add_choices(parser: CommandParser) -> None:
    """Add the flags that decide which numbers are computed."""
    parser.add_argument("--split", default="", help="split to report (default: test)")
    parser.add_argument(
        "--positive", default="", help="positive class of two (default: malignant, else the second class)"
    )
    parser.add_argument(
        "--threshold",
        default="",
        metavar="CLASS=0.4,…",
        help="thresholds to use instead of those that the run locked on validation images",
    )
    parser.add_argument(
        "--threshold_rule",
        choices=["youden", "f1", "fixed"],
        default="youden",
        help="rule that chooses thresholds on validation rows where none are locked (default: youden)",
    )
    parser.add_argument(
        "--resamples",
        metavar="N",
        type=flags.not_negative,
        help="bootstrap resamples (default: the run's, else 2000)",
    )
    flags.add_seed(parser, "random seed of the bootstrap (default: the run's, else 0)", default=None)


def run(args: argparse.Namespace) -> None:
    """Write the report, and print the most important numbers."""
    from histojax.evaluation import thresholds
    from histojax.evaluation.report import report_json, sources
    from histojax.evaluation.report.html_templates import printable

    if args.output.exists() and not args.output.is_dir():
        raise RunError(f"--output={args.output} is a file, and must be a folder")
    audit = _read_audit(args.audit) if args.audit else None
    chosen = thresholds.parse(args.threshold) or None
    read = [
        sources.read(path, name=name, thresholds=chosen, rule=args.threshold_rule, positive=args.positive)
        for path, name in zip(args.sources, _names(args.sources, args.names), strict=True)
    ]
    spec = report_json.ReportSpec(args.split, args.resamples, args.seed, args.worst)
    report = report_json.describe(read, spec)
    for described in report["sources"]:
        described["audit"] = audit
    files = _write(report, read, args)
    print("\n".join(map(printable, _lines(report, verbose=args.verbose))))
    print(f"See {', '.join(map(str, files))}")


def _write(report: Mapping[str, Any], sources: Sequence["Source"], args: argparse.Namespace) -> list[pathlib.Path]:
    """Write every file of the report; return their paths, the page first."""
    from histojax import __version__
    from histojax.evaluation.report import metrics_csv, model_card, report_html

    pairs = list(zip(sources, report["sources"], strict=True))
    thumbnails = [_thumbnails(source, described, args.images) for source, described in pairs]
    texts = {
        "report.json": json.dumps(report, indent=1, allow_nan=False) + "\n",
        "metrics.csv": metrics_csv.metrics_csv(report),
    }
    runs = [(source, described) for source, described in pairs if source.is_run]
    for source, described in runs:
        name = "MODEL_CARD.md" if len(runs) == 1 else f"MODEL_CARD.{_file_name(source.name)}.md"
        texts[name] = model_card.card(described, source.config, args.license)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with atomic_write(args.output / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    report_html.write(args.output / "report.html", report, thumbnails, __version__)
    return [args.output / name for name in ("report.html", *texts)]


def _lines(report: Mapping[str, Any], *, verbose: bool) -> list[str]:
    """Lay out the report for the terminal."""
    from histojax.evaluation import terminal

    lines = []
    for source in report["sources"]:
        results = {
            "protocol": source["facts"]["protocol"],
            "splits": {source["split"]: source["splits"][source["split"]]},
        }
        text = terminal.table(results) if verbose else terminal.headline(results)
        notes = [f"note: {note}" for note in source["notes"]]
        lines += [f"== {source['name']}", *text.splitlines(), *notes, ""]
    for pair in report["comparisons"]:
        names = f"{pair['second']} against {pair['first']}"
        if pair["refused"]:
            lines.append(f"{names}: not compared: {pair['refused']}")
            continue
        difference = pair["differences"]["accuracy"]
        interval = "" if difference["low"] is None else f" [{difference['low']:+.4f}, {difference['high']:+.4f}]"
        p = next(iter(pair["mcnemar"].values()))["mid_p"]
        lines.append(
            f"{names}: accuracy {difference['value']:+.4f}{interval} over {pair['resampled']}s, "
            f"McNemar's mid-p {p:.4f}, {pair['n_images']} images"
        )
    return lines


def _names(paths: Sequence[str], text: str) -> list[str]:
    """Name the sources: as --names has it, else by the shortest ends of their paths that differ.

    Raises:
      RunError: as many names as sources are not given, or the same source is given twice.
    """
    if text:
        names = text.split(",")
        if len(names) != len(paths) or len(set(names)) != len(names) or "" in names:
            raise RunError(f"--names={text}: give {len(paths)} different names, one per source")
        return names
    from histojax.evaluation.report import sources

    if found := sources.names(paths):
        return found
    raise RunError("the same source was given twice; to compare copies, name them with --names")


def _read_audit(path: pathlib.Path) -> dict[str, Any]:
    """Read the facts of an audit that the report shows.

    Raises:
      RunError: the file was not written by `histojax audit`.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        shown = {key: facts[key] for key in ("leaks", "warnings", "images", "pictures")}
        return shown | {"duplicates": len(facts["duplicates"]), "splits": list(facts["splits"])}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"--audit={path} is not an audit.json of `histojax audit` ({error!r}); run the audit again"
        ) from error


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _thumbnails(source: "Source", described: Mapping[str, Any], images: Sequence[str]) -> tuple[dict[str, bytes], str]:
    """Return thumbnails of the worst errors by image_id, and the reason if some are missing."""
    rows = described["worst"]["rows"]
    if not rows:
        return {}, ""
    from histojax.inference import thumbnails

    return thumbnails.thumbnails(source, rows, images)
