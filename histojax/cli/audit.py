"""`histojax audit ROOT …`: what is wrong with a dataset or a split, before anything is trained on it."""

import argparse
import csv
import importlib.util
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.audit import hashes
from histojax.cli import console
from histojax.core.errors import RunError
from histojax.core.files import atomic_write

_COLOURS = ("lightness", "red_green", "yellow_blue")
_THUMBNAIL = 320  # pixels of the longer side
_LISTED = 20  # pictures, and lines of anything, that the terminal shows


def main(words: list[str]) -> None:
    """Runs `histojax audit` with these words: exit code 1 on a leak, and for what a user can mend, told in words."""
    parser = argparse.ArgumentParser(
        "histojax audit",
        description="Pictures that are there twice (equal, re-encoded, resized, flipped, turned by quarters), patients "
        "and cases on two sides of a split, contradicting labels, counts, sizes, colours, blank, inked and blurred "
        "images. Exit code 1 on a leak: one picture or one patient on two sides. Research use only.",
    )
    parser.add_argument(
        "root",
        type=pathlib.Path,
        help="folder of images, or list of them (.csv: path,label[,patient_id][,case_id][,magnification][,split])",
    )
    sides = parser.add_mutually_exclusive_group()
    sides.add_argument(
        "--split", type=pathlib.Path, help="split.csv of a run, or any .csv of image_id or path, and split"
    )
    sides.add_argument("--folds", type=pathlib.Path, metavar="DIR", help="BreakHis's dsfold1.txt … dsfold5.txt")
    parser.add_argument("--against", type=pathlib.Path, metavar="ROOT2", help="another dataset: are pictures in both?")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("audit"),
        help="folder for audit.json, audit.html, images.csv",
    )
    parser.add_argument(
        "--max_distance",
        type=int,
        default=hashes.MAX_DISTANCE,
        metavar="N",
        help=f"bits of {hashes.BITS} in which the hashes of nearly equal pictures may differ; 0 … "
        f"{hashes.BITS // 4}, default %(default)s",
    )
    parser.add_argument("--strict_cases", action="store_true", help="a case on two sides is a leak, too")
    given = parser.parse_args(words)
    if importlib.util.find_spec("jinja2") is None:
        sys.exit("error: the page needs jinja2: pip install 'histojax[report]'")

    console.configure_logging()
    try:
        with console.errors_in_words():
            leaks = _audit(given)
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was written")
    if leaks:
        sys.exit(1)


def _audit(given: argparse.Namespace) -> bool:
    from data_pipelines.audit.audit import audit
    from data_pipelines.audit.measures import thumbnail
    from data_pipelines.images import decode_rgb
    from histojax.evaluation.report import audit_page, pages

    if given.output.exists() and not given.output.is_dir():
        raise RunError(f"{given.output}: a file, and --output is a folder")
    found = audit(
        given.root,
        split=given.split,
        folds=given.folds,
        against=given.against,
        max_distance=given.max_distance,
        strict_cases=given.strict_cases,
    )
    given.output.mkdir(parents=True, exist_ok=True)
    _write_rows(given.output / "images.csv", found.rows)
    with atomic_write(given.output / "audit.json") as temporary:
        temporary.write_text(json.dumps(found.facts, indent=1, allow_nan=False), encoding="utf-8")
    shown = {
        name: thumbnail(decode_rgb(found.paths[name].read_bytes()), _THUMBNAIL)
        for name in audit_page.names_shown(found.facts)
    }
    audit_page.write(given.output / "audit.html", found.facts, shown)
    print("\n".join(map(pages.printable, _lines(found.facts))))
    print(f"\nSee {given.output}/audit.html, audit.json and images.csv")
    return bool(found.leaks)


def _write_rows(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = max((list(row) for row in rows), key=len)  # images that cannot be read have fewer
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _lines(facts: Mapping[str, Any]) -> list[str]:
    """What the terminal shows."""
    head = {
        "dataset": facts["root"],
        "images": f"{facts['images']}, {facts['pictures']} different pictures",
        "patients": f"{facts['patients'] or 'unknown'}, cases: {facts['cases'] or 'unknown'}",
        "sizes": _counted(facts["sizes"]),
        "formats": _counted(facts["modes"]),
    }
    if facts["against"] is not None:
        head["against"] = f"{facts['against']}, {facts['images_against']} images"
    if facts["published"]:
        head["BreakHis"] = f"{facts['published']['text']} (at {', '.join(facts['published']['magnifications'])})"
    for name, split in facts["splits"].items():
        head[f"sides: {name}"] = _counted(split["sides"])
    width = max(map(len, head))
    lines = [f"{name:<{width}}  {value}" for name, value in head.items()]
    lines += ["", *_label_table(facts)]
    if facts["duplicates"]:
        lines += ["", "the same picture"]
        lines += [f"  {_told(entry)}" for entry in facts["duplicates"][:_LISTED]]
        lines += _more(facts["duplicates"])
    if facts["unreadable"]:
        lines += ["", "cannot be read"]
        lines += [f"  {name}: {reason}" for name, reason in list(facts["unreadable"].items())[:_LISTED]]
        lines += _more(facts["unreadable"])
    lines += [""]
    lines += [f"warning: {text}" for text in facts["warnings"]]
    lines += [f"LEAK: {text}" for text in facts["leaks"]]
    if not facts["leaks"]:
        lines.append("no leak was found" + ("" if facts["splits"] else "; no split was given"))
    return lines


def _label_table(facts: Mapping[str, Any]) -> list[str]:
    """Counts and mean colours, a line a label."""
    table = [["label", "images", "patients", "cases", "L*", "a*", "b*", "contrast", "sharpness"]]
    for label, row in facts["counts"].items():
        colour = facts["colours"]["labels"].get(label)
        means = [f"{colour[key]['mean']:.1f} ± {colour[key]['sd']:.1f}" for key in _COLOURS] if colour else [""] * 3
        rest = [f"{colour['lightness_sd']['mean']:.1f}", f"{colour['sharpness']['mean']:.2f}"] if colour else [""] * 2
        counts = [str(row[key] or "–") for key in ("images", "patients", "cases")]
        table.append([label or "(none)", *counts, *means, *rest])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([f"{row[0]:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]


def _told(entry: Mapping[str, Any]) -> str:
    names = " = ".join(name.rpartition("/")[2] for name in entry["images"][:4])
    if len(entry["images"]) > 4:
        names += f" = {len(entry['images']) - 4} more"
    how = "equal" if entry["kind"] == "exact" else f"{entry['view']}, {entry['distance']} bits apart"
    labels = f"; labels {', '.join(sorted(set(entry['labels'])))}" if entry["label_conflict"] else ""
    sides = "".join(f"; {name}: {', '.join(sorted(set(sides) - {''}))}" for name, sides in entry["crosses"].items())
    return f"{names} ({how}{labels}{sides})"


def _more(items: Sequence[Any] | Mapping[str, Any]) -> list[str]:
    return [f"  … and {len(items) - _LISTED} more; see audit.json"] if len(items) > _LISTED else []


def _counted(table: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in table.items())
