"""`histojax slide outcome`: stroma percentages against the outcome of patients."""

import argparse
import pathlib
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax slide outcome`."""
    parser = add_verb(
        subparsers,
        "slide outcome",
        run,
        summary="association of stroma percentages with the outcome of patients",
        description="Joins slides.csv of histojax slide with a table of patients, and writes log-rank tests, "
        "Kaplan-Meier curves, Cox hazard ratios and Harrell's C, with intervals: outcome.json, outcome.csv, "
        "outcome.svg and outcome.png. Cut-offs are preset and never chosen by their p value. Research use only: an "
        "association in one cohort, not a finding on one patient.",
        examples=[
            "histojax slide outcome slides_out/slides.csv clinical.csv --time_unit months "
            "--patient_pattern '^(?P<patient>P[0-9]+)' --output outcome_out"
        ],
    )
    parser.add_argument("slides", metavar="SLIDES", type=pathlib.Path, help="slides.csv of histojax slide")
    parser.add_argument(
        "clinical", metavar="CLINICAL", type=pathlib.Path, help="table with one row per patient: patient_id,time,event"
    )
    flags.add_output(parser, "folder for outcome.json, outcome.csv, outcome.svg and outcome.png")
    parser.add_argument("--time_unit", required=True, help="unit of the times: days, weeks, months, years")
    group = parser.add_argument_group("tables")
    for name, what in (
        ("patient", "patients (default: patient_id)"),
        ("time", "follow-up, above 0 (default: time)"),
        ("event", "event: 1 or true if observed, 0 or false if censored (default: event)"),
        ("slide", "slide names, with one row per slide (default: none)"),
    ):
        group.add_argument(f"--{name}_column", metavar="COLUMN", help=f"column of CLINICAL with the {what}")
    group.add_argument(
        "--patient_pattern",
        metavar="REGEX",
        help="regular expression on slide names with a group (?P<patient>…) (default: column patient_id of SLIDES)",
    )
    group = parser.add_argument_group("analysis")
    group.add_argument(
        "--part", help="part of a slide whose percentage counts: whole_tissue (default), region or hot_spot"
    )
    group.add_argument(
        "--combine", help="a patient with several slides counts by the highest percentage (default), or by area"
    )
    group.add_argument(
        "--cutoff",
        metavar="A,B,…",
        type=flags.comma_list,
        help="stroma-high from: default (> 50 %%), colon (> 50 %%), hcc (>= 50 %%), or above a percentage that was "
        "fixed in advance",
    )
    group.add_argument(
        "--adjust", metavar="A,B,…", type=flags.comma_list, help="columns of CLINICAL to adjust for, as age,stage"
    )
    group.add_argument(
        "--categorical",
        metavar="A,B,…",
        type=flags.comma_list,
        help="columns of --adjust whose numbers are names of categories",
    )
    group.add_argument(
        "--agreement",
        metavar="JSON",
        type=pathlib.Path,
        help="agreement.json of histojax slide agreement: also correct the hazard ratio for measurement error",
    )
    group.add_argument("--resamples", metavar="N", type=flags.positive, help="bootstrap resamples (default: 2000)")
    flags.add_seed(group, "random seed of the bootstrap")
    return parser


def run(args: argparse.Namespace) -> None:
    """Measure the association."""
    from histojax.slides.outcome import text, write
    from histojax.slides.outcome.spec import OutcomeSpec

    names = ("patient_column", "time_column", "event_column", "slide_column", "patient_pattern", "part", "combine")
    given = {name: getattr(args, name) for name in (*names, "adjust", "categorical", "resamples")}
    given["cutoffs"] = args.cutoff
    spec = OutcomeSpec(
        time_unit=args.time_unit, seed=args.seed, **{key: value for key, value in given.items() if value is not None}
    )
    result = write.outcome(args.slides, args.clinical, spec, args.output, args.agreement)
    print("\n".join(text.lines(result)))
