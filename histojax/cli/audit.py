"""`histojax audit`: find problems of a dataset or a split before training."""

import argparse
import csv
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb, refuse_unused
from histojax.core.errors import RunError
from histojax.core.files import atomic_write, write_json
from histojax.core.text_table import text_table

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers

# Of data_pipelines.audit.hashes, which is not imported for a help text; a test holds that they are the same.
HASH_BITS, MAX_DISTANCE = 255, 40
_COLOURS = ("lightness", "red_green", "yellow_blue")
_THUMBNAIL = 320  # pixels of the longer side
_LISTED = 20  # duplicates and unreadable images that the terminal lists


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax audit`."""
    parser = add_verb(
        subparsers,
        "audit",
        run,
        summary="find duplicates, split leaks, label conflicts and colour differences in a dataset",
        description="Finds images that appear twice (identical, re-encoded, resized, flipped, turned by quarters), "
        "patients and cases on two sides of a split, contradicting labels, and blank, inked and blurred images; "
        "counts images, sizes and colours. Without ROOT, --split or --folds is audited by names alone, in seconds. "
        "Exit code 1: a leak, which is one picture or one patient on two sides. Research use only.",
        examples=[
            "histojax audit BreaKHis_v1 --split runs/dala_100x/split.csv --output audit_out",
            "histojax audit --split break_his.json --output audit_out",
        ],
    )
    parser.add_argument(
        "root",
        metavar="ROOT",
        nargs="?",
        type=pathlib.Path,
        help="folder of images, or list (.csv: path,label[,patient_id][,case_id][,magnification][,split]); "
        "leave it out to audit a split by the names in it",
    )
    sides = parser.add_mutually_exclusive_group()
    sides.add_argument(
        "--split",
        metavar="FILE",
        type=pathlib.Path,
        help="split.csv of a run, any table with image_id (or path) and split, dsfoldN.txt, or JSON of another program "
        "with the names of each side",
    )
    sides.add_argument(
        "--folds", type=pathlib.Path, metavar="DIR", help="folder with BreakHis's dsfold1.txt … dsfold5.txt"
    )
    parser.add_argument(
        "--against", type=pathlib.Path, metavar="ROOT2", help="another dataset, to find images that are in both"
    )
    flags.add_output(parser, "folder for audit.json, audit.html and images.csv", default="audit")
    parser.add_argument(
        "--max_distance",
        type=int,
        default=MAX_DISTANCE,
        metavar="N",
        help=f"bits of {HASH_BITS} in which the hashes of nearly equal images may differ, "
        f"0 to {HASH_BITS // 4} (default: {MAX_DISTANCE})",
    )
    parser.add_argument("--strict_cases", action="store_true", help="also count one case on two sides as a leak")
    parser.set_defaults(interrupted="interrupted: nothing was written")
    return parser


def run(args: argparse.Namespace) -> None:
    """Audit a dataset; exit code 1 on a leak."""
    if args.output.exists() and not args.output.is_dir():
        raise RunError(f"--output={args.output} is a file, and must be a folder")
    refuse_unused(args, args.root is not None, ["--against", "--max_distance"], "with ROOT, which has the images")
    if args.root is None:
        _audit_names(args)
    else:
        _audit_images(args)


def _audit_names(args: argparse.Namespace) -> None:
    """Audit a split by the names in it."""
    from data_pipelines.audit.names import audit_names
    from histojax.evaluation.report import html_templates

    path = args.split or args.folds
    if path is None:
        raise RunError("nothing to audit: give ROOT, or --split FILE, or both")
    facts = audit_names(path, args.strict_cases)
    args.output.mkdir(parents=True, exist_ok=True)
    _write_rows(args.output / "images.csv", facts.pop("rows"))
    write_json(args.output / "audit.json", facts)
    print("\n".join(map(html_templates.printable, _name_lines(facts))))
    print(f"\nSee {args.output}/audit.json and images.csv")
    if facts["leaks"]:
        sys.exit(1)


def _name_lines(facts: Mapping[str, Any]) -> list[str]:
    """Lay out an audit by names for the terminal."""
    head = [["split", facts["split"]], ["images", f"{facts['images']}, by their names alone"]]
    head.append(["patients", f"{facts['patients'] or 'unknown'}, cases: {facts['cases'] or 'unknown'}"])
    head += [[f"sides: {name}", _counts(split["sides"])] for name, split in facts["splits"].items()]
    lines = [*text_table(head), ""]
    for name, split in facts["splits"].items():
        groups = {"patient": split["patients"], "case": split["cases"]}
        for what, crossing in groups.items():
            lines += [f"{name}: {what} {group}: {_counts(sides)}" for group, sides in list(crossing.items())[:_LISTED]]
            lines += _more(crossing)
    return [*lines, *_verdict_lines(facts)]


def _audit_images(args: argparse.Namespace) -> None:
    """Audit images, and the splits that divide them."""
    from data_pipelines.audit.audit import audit
    from data_pipelines.audit.measures import thumbnail
    from data_pipelines.images import decode_rgb
    from histojax.evaluation.report import audit_html, html_templates

    result = audit(
        args.root,
        split=args.split,
        folds=args.folds,
        against=args.against,
        max_distance=args.max_distance,
        strict_cases=args.strict_cases,
    )
    args.output.mkdir(parents=True, exist_ok=True)
    _write_rows(args.output / "images.csv", result.rows)
    write_json(args.output / "audit.json", result.facts)
    thumbnails = {
        name: thumbnail(decode_rgb(result.paths[name].read_bytes()), _THUMBNAIL)
        for name in audit_html.names_shown(result.facts)
    }
    audit_html.write(args.output / "audit.html", result.facts, thumbnails)
    print("\n".join(map(html_templates.printable, _lines(result.facts))))
    print(f"\nSee {args.output}/audit.html, audit.json and images.csv")
    if result.leaks:
        sys.exit(1)


def _write_rows(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = max((list(row) for row in rows), key=len)  # images that cannot be read have fewer
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _lines(facts: Mapping[str, Any]) -> list[str]:
    """Lay out the audit for the terminal."""
    head = {
        "dataset": facts["root"],
        "images": f"{facts['images']}, {facts['pictures']} different pictures",
        "patients": f"{facts['patients'] or 'unknown'}, cases: {facts['cases'] or 'unknown'}",
        "sizes": _counts(facts["sizes"]),
        "formats": _counts(facts["modes"]),
    }
    if facts["against"] is not None:
        head["against"] = f"{facts['against']}, {facts['images_against']} images"
    if facts["published"]:
        head["BreakHis"] = f"{facts['published']['text']} (at {', '.join(facts['published']['magnifications'])})"
    for name, split in facts["splits"].items():
        head[f"sides: {name}"] = _counts(split["sides"])
    lines = [*text_table([[name, str(value)] for name, value in head.items()]), "", *_label_table(facts)]
    if facts["duplicates"]:
        lines += ["", "the same picture"]
        lines += [f"  {_duplicate(entry)}" for entry in facts["duplicates"][:_LISTED]]
        lines += _more(facts["duplicates"])
    if facts["unreadable"]:
        lines += ["", "cannot be read"]
        lines += [f"  {name}: {reason}" for name, reason in list(facts["unreadable"].items())[:_LISTED]]
        lines += _more(facts["unreadable"])
    return [*lines, "", *_verdict_lines(facts)]


def _verdict_lines(facts: Mapping[str, Any]) -> list[str]:
    lines = [f"warning: {text}" for text in facts["warnings"]]
    lines += [f"LEAK: {text}" for text in facts["leaks"]]
    if not facts["leaks"]:
        lines.append("no leak was found" + ("" if facts["splits"] else "; no split was given"))
    return lines


def _label_table(facts: Mapping[str, Any]) -> list[str]:
    """Lay out counts and mean colours, one row per label."""
    rows = [["label", "images", "patients", "cases", "L*", "a*", "b*", "contrast", "sharpness"]]
    for label, counts in facts["counts"].items():
        colour = facts["colours"]["labels"].get(label)
        means = [f"{colour[key]['mean']:.1f} ± {colour[key]['sd']:.1f}" for key in _COLOURS] if colour else [""] * 3
        rest = [f"{colour['lightness_sd']['mean']:.1f}", f"{colour['sharpness']['mean']:.2f}"] if colour else [""] * 2
        rows.append([label or "(none)", *(str(counts[key] or "unknown") for key in rows[0][1:4]), *means, *rest])
    return text_table(rows, right=range(1, len(rows[0])))


def _duplicate(entry: Mapping[str, Any]) -> str:
    """Describe one set of equal or nearly equal images."""
    names = " = ".join(name.rpartition("/")[2] for name in entry["images"][:4])
    if len(entry["images"]) > 4:
        names += f" = {len(entry['images']) - 4} more"
    likeness = "equal" if entry["kind"] == "exact" else f"{entry['view']}, {entry['distance']} bits apart"
    labels = f"; labels {', '.join(sorted(set(entry['labels'])))}" if entry["label_conflict"] else ""
    sides = "".join(f"; {name}: {', '.join(sorted(set(sides) - {''}))}" for name, sides in entry["crosses"].items())
    return f"{names} ({likeness}{labels}{sides})"


def _more(items: Sequence[Any] | Mapping[str, Any]) -> list[str]:
    return [f"  … and {len(items) - _LISTED} more; see audit.json"] if len(items) > _LISTED else []


def _counts(table: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in table.items())
