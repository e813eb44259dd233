"""`histojax report RUN_OR_PREDICTIONS …`: what models scored, on one page that can be handed on."""

import argparse
import importlib.util
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from histojax.cli import console
from histojax.core.errors import RunError
from histojax.core.files import atomic_write

if TYPE_CHECKING:
    from histojax.evaluation.report.inputs import Source


def main(words: list[str]) -> None:
    """Runs `histojax report` with these words; whatever a user can mend is told in words, with exit code 1."""
    parser = argparse.ArgumentParser(
        "histojax report",
        description="One page of figures with intervals, confusion matrices, curves, calibration, thresholds, "
        "patients, worst errors and paired comparisons; no script, no network. Writes report.html, report.json, "
        "metrics.csv and, of a run, MODEL_CARD.md. Research use only.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="RUN_OR_PREDICTIONS",
        help="work directories, or tables (.csv, .parquet) of any framework: image_id, patient_id, magnification, "
        "split, label, prob_<class>…, or label_<name>… and prob_<name>…",
    )
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("report"), help="folder; default %(default)s"
    )
    parser.add_argument("--names", default="", help="of the sources on the page, as A,B,C; default: folders and files")
    parser.add_argument("--split", default="", help="that is reported; default test")
    parser.add_argument("--positive", default="", help="class of two; default malignant, else the second")
    parser.add_argument(
        "--threshold", default="", metavar="CLASS=0.4,…", help="instead of those that the run locked on validation"
    )
    parser.add_argument(
        "--threshold_rule",
        choices=["youden", "f1", "fixed"],
        default="youden",
        help="chooses thresholds on validation rows where none are locked; default %(default)s",
    )
    parser.add_argument("--images", nargs="+", default=[], metavar="PATH", help="folders, lists, zips: for thumbnails")
    parser.add_argument("--audit", type=pathlib.Path, help="audit.json of `histojax audit`, of these data")
    parser.add_argument("--resamples", type=int, help="of the bootstrap; default: the run's, else 2000")
    parser.add_argument("--seed", type=int, help="of the bootstrap; default: the run's, else 0")
    parser.add_argument("--worst", type=int, default=24, metavar="N", help="worst errors shown; default %(default)s")
    parser.add_argument("--license", default="", help="of the weights, for the model card; default: not stated")
    given = parser.parse_args(words)
    if given.worst < 0 or (given.resamples is not None and given.resamples < 0):
        parser.error("--worst and --resamples are not negative")
    if any(importlib.util.find_spec(name) is None for name in ("jinja2", "matplotlib")):
        sys.exit("error: the page needs jinja2 and matplotlib: pip install 'histojax[report]'")

    console.configure_logging()
    try:
        with console.errors_in_words():
            _report(given)
    except KeyboardInterrupt:
        sys.exit("interrupted: files that were written are whole")


def _report(given: argparse.Namespace) -> None:
    from histojax import __version__
    from histojax.evaluation.report import document, inputs, model_card, report
    from histojax.evaluation.report.pages import printable

    if given.output.exists() and not given.output.is_dir():
        raise RunError(f"{given.output}: a file, and --output is a folder")
    audit = _audit(given.audit) if given.audit else None
    names = _names(given.sources, given.names)
    thresholds = _thresholds(given.threshold)
    sources = [
        inputs.read(path, name=name, thresholds=thresholds, rule=given.threshold_rule, positive=given.positive)
        for path, name in zip(given.sources, names, strict=True)
    ]
    spec = report.Spec(given.split, given.resamples, given.seed, given.worst)
    found = report.describe(sources, spec)
    for one in found["sources"]:
        one["audit"] = audit
    pictures = [_pictures(source, one, given.images) for source, one in zip(sources, found["sources"], strict=True)]

    given.output.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.json": json.dumps(found, indent=1, allow_nan=False) + "\n",
        "metrics.csv": report.metrics_csv(found),
    }
    runs = [(source, one) for source, one in zip(sources, found["sources"], strict=True) if source.is_run]
    for source, one in runs:
        file = "MODEL_CARD.md" if len(runs) == 1 else f"MODEL_CARD.{_file_name(source.name)}.md"
        texts[file] = model_card.card(one, source.config, given.license)
    for file, text in texts.items():
        with atomic_write(given.output / file) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    document.write(given.output / "report.html", found, pictures, __version__)

    print("\n".join(map(printable, _lines(found))))
    print(f"See {', '.join(str(given.output / file) for file in ('report.html', *texts))}")


def _lines(found: Mapping[str, Any]) -> list[str]:
    """What the terminal shows."""
    from histojax.evaluation import terminal

    lines = []
    for one in found["sources"]:
        shown = {"protocol": one["facts"]["protocol"], "splits": {one["split"]: one["splits"][one["split"]]}}
        lines += [
            f"== {one['name']}",
            *terminal.table(shown).splitlines(),
            *(f"note: {note}" for note in one["notes"]),
            "",
        ]
    for pair in found["comparisons"]:
        names = f"{pair['second']} against {pair['first']}"
        if pair["refused"]:
            lines.append(f"{names}: not compared: {pair['refused']}")
            continue
        figure = pair["differences"]["accuracy"]
        ends = "" if figure["low"] is None else f" [{figure['low']:+.4f}, {figure['high']:+.4f}]"
        p = next(iter(pair["mcnemar"].values()))["mid_p"]
        lines.append(
            f"{names}: accuracy {figure['value']:+.4f}{ends} over {pair['resampled']}s, McNemar's mid-p {p:.4f}, "
            f"{pair['n_images']} images"
        )
    return lines


def _names(paths: Sequence[str], given: str) -> list[str]:
    """Names of the sources: as given, else shorter than paths and yet told apart."""
    if given:
        names = given.split(",")
        if len(names) != len(paths) or len(set(names)) != len(names) or "" in names:
            raise RunError(f"--names={given}: give {len(paths)} different names, one a source")
        return names
    full = [pathlib.Path(path).expanduser().resolve() for path in paths]
    parts = [(*path.parts[:-1], path.name if path.is_dir() else path.stem) for path in full]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-n:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise RunError("one source is given twice: a model has nothing to be compared with itself; --names names copies")


def _thresholds(text: str) -> dict[str, float] | None:
    cuts = {}
    for word in text.split(",") if text else ():
        name, _, number = word.rpartition("=")
        try:
            cuts[name] = float(number)
        except ValueError:
            cuts[name] = float("nan")
        if not name or not 0 <= cuts[name] <= 1:
            raise RunError(f"--threshold={text}: give CLASS=0.4 with a value in 0 … 1, several after commas")
    return cuts or None


def _audit(path: pathlib.Path) -> dict[str, Any]:
    """What the report says of an audit."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: facts[key] for key in ("leaks", "warnings", "images", "pictures")}
        return kept | {"duplicates": len(facts["duplicates"]), "splits": list(facts["splits"])}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: is no audit.json of `histojax audit` ({error!r}): make it anew") from error


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _pictures(source: "Source", found: Mapping[str, Any], images: Sequence[str]) -> tuple[dict[str, bytes], str]:
    """Thumbnails of the worst errors, by image_id, and why there are none, or fewer."""
    rows = found["worst"]["rows"]
    if not rows:
        return {}, ""
    from histojax.inference import thumbnails

    return thumbnails.thumbnails(source, rows, images)
