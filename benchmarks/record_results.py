"""Record the results of a study in benchmarks/results, where the pages of the documentation take their figures from.

    python benchmarks/record_results.py runs/leak/protocols.json leak_meter --command "histojax protocols ..." \
        --data "BreakHis at 100X, 2,081 images, CC BY 4.0" --protocol "case-disjoint, 5 folds"

STUDY_JSON is protocols.json of `histojax protocols`, probe.json of `histojax probe`, comparison.json of `histojax
compare`, results.json of a run, robustness.json of `histojax robustness`, agreement.json of `histojax slide agreement`,
a file of `histojax bench --json` or `benchmarks/accelerator.py --json`, or the output of `benchmarks/novelty.py`.
Machine, commit and date are recorded as well: run this on the machine and at the commit of the study, or state both. A
file that exists keeps its tables.
"""

import argparse
import datetime
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from histojax.cli.console import exit_on_user_error
from histojax.core import machine
from histojax.core.errors import RunError
from histojax.core.files import atomic_write

FOLDER = pathlib.Path(__file__).parent / "results"
PROVENANCE = ("command", "data", "protocol", "machine", "commit", "date")

_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[\w.+-]+/)+")  # of an absolute path

Rows = dict[str, dict[str, Any]]
Columns = dict[str, str]


def main(argv: Sequence[str] | None = None, folder: pathlib.Path = FOLDER) -> None:
    """Write the results file of a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=pathlib.Path, metavar="STUDY_JSON", help="results of the study")
    parser.add_argument("name", metavar="NAME", help="name of the file in benchmarks/results, without .json")
    parser.add_argument("--command", required=True, help="command that repeats the study")
    parser.add_argument("--data", required=True, help="images, with counts and license")
    parser.add_argument("--protocol", required=True, help="how the images were split, folds, epochs or rounds")
    parser.add_argument("--machine", help="machine of the study (default: the study's own entry, or this machine)")
    parser.add_argument("--commit", help="commit of the study (default: that of this checkout)")
    args = parser.parse_args(argv)
    with exit_on_user_error():
        study = _read(args.study)
        rows, columns = rows_and_columns(study, args.study)
        host = study.get("machine") if isinstance(study, dict) else None
        provenance = {
            "command": args.command,
            "data": args.data,
            "protocol": args.protocol,
            "machine": args.machine or describe_machine(host or machine.describe()),
            "commit": args.commit or current_commit(),
            "date": datetime.datetime.fromtimestamp(args.study.stat().st_mtime, datetime.UTC).date().isoformat(),
        }
        path = folder / f"{args.name}.json"
        _write(path, provenance, columns, rows)
    print(f"wrote {path}; show it in a page between <!-- results: {args.name} --> and <!-- end -->, then run")
    print("python docs/generate.py")


def record_here(path: pathlib.Path, command: str, data: str, protocol: str, columns: Columns, rows: Rows) -> None:
    """Write the results file of a program that has just measured on this machine, at the commit of this checkout.

    Args:
      path: the file; if it exists, it keeps its tables.
      command: command that repeats the measurement.
      data: images, with counts and license.
      protocol: what was measured, and how.
      columns: headings and templates of a table of all rows.
      rows: the results by name.
    """
    values = (
        command,
        data,
        protocol,
        describe_machine(machine.describe()),
        current_commit(),
        datetime.date.today().isoformat(),
    )
    _write(path, dict(zip(PROVENANCE, values, strict=True)), columns, {name: _kept(row) for name, row in rows.items()})


def _write(path: pathlib.Path, provenance: Mapping[str, str], columns: Columns, rows: Rows) -> None:
    tables = _read(path)["tables"] if path.exists() else {"main": {"columns": columns}}
    with atomic_write(path) as temporary:
        temporary.write_text(dump({"provenance": provenance, "tables": tables, "rows": rows}), encoding="utf-8")


def rows_and_columns(study: Any, path: pathlib.Path) -> tuple[Rows, Columns]:
    """Return the rows of a study by name, and the columns of a table that shows them.

    Raises:
      RunError: the content is not that of a study.
    """
    if isinstance(study, dict) and "transfer" in study:
        rows = {f"{row['protocol']}_{row['magnification']}": row for row in study["rows"]}
        columns = {"protocol": "{protocol}", "images": "{n_images}", "patients": "{n_patients}"}
        columns |= {"accuracy, mean ± sd of folds": "{figures.accuracy:.3f}"}
        columns |= {"of all folds, 95 %": "{figures.accuracy.pooled:.3f}"}
        columns |= {"constant answer": "{majority_baseline.accuracy:.3f}"}
    elif isinstance(study, dict) and "studies" in study:
        rows = {f"{row['protocol']} {row['name']}": row for row in _of_probe(study)}
        columns = {"features, classifier": "{name}", "protocol": "{protocol}"}
        columns |= {"images": "{n_images}", "patients": "{n_patients}"}
        columns |= {key: f"{{metrics.{key}:.3f}}" for key in ("accuracy", "gmean", "auroc")}
        columns |= {"AUROC − reference's": "{differences.auroc:.3f}"}
    elif isinstance(study, dict) and "splits" in study:
        rows = {split: {"split": split, **block} for split, block in study["splits"].items()}
        estimates = next(iter(rows.values()))["image"]
        columns = {"split": "{split}", "images": "{n_images}", "patients": "{n_patients}"}
        columns |= {key: f"{{image.{key}:.3f}}" for key, estimate in estimates.items() if "value" in estimate}
    elif isinstance(study, dict) and "comparisons" in study and "runs" in study:
        rows = {f"{run['name']} {row['name']}": row for run in study["runs"] for row in _of_robustness(run)}
        columns = {"shift": "{title}", "balanced accuracy": "{mean.balanced_accuracy:.3f}"}
        columns |= {"change": "{change.balanced_accuracy:.3f}", "worst": "{worst.value:.3f} at {worst.label}"}
        columns |= {"AUROC": "{mean.auroc:.3f}", "ECE": "{mean.ece:.3f}"}
    elif isinstance(study, dict) and "settings" in study:
        work = study["settings"]["work"]
        rows = {f"{work}_{row.get('model', '')}": {"work": work, **row} for row in study["results"]}
        first = study["results"][0]
        columns = {"benchmark": "{work} {model}" if "model" in first else "{work}"}
        columns |= {
            f"{side}, images/s": f"{{contestants.{side}.images_per_second:,.1f}}" for side in first["contestants"]
        }
        columns |= {f"ours / {peer}": f"{{ratios.{peer}.paired:.2f}}" for peer in first["ratios"]}
    elif isinstance(study, dict) and "rules" in study and "figures" in study:
        rows = {"agreement": {"rules": "; ".join(study["rules"]), **study["figures"]}}
        columns = {"images": "{n}", "ICC(2,1)": "{icc:.3f}", "Bland-Altman bias": "{bias:.1f}"}
        columns |= {"limits of agreement": "{lower_limit:.1f} … {upper_limit:.1f}"}
        columns |= {"Spearman's rho": "{spearman:.3f}", "mean absolute error": "{mean_absolute_error:.1f}"}
    elif isinstance(study, list) and study and "model" in study[0] and "accuracy" in study[0]:
        rows = {row["model"]: row for row in study}
        columns = {"model": "{model}", "images": "{n_images}", "patients": "{n_patients}"}
        columns |= {"accuracy": "{accuracy:.3f}", "GMean": "{gmean:.3f}", "parameters": "{parameters:,}"}
    elif isinstance(study, list) and study and "rounds" in study[0]:
        rows = {f"{row['work']}_{row['model']}": _of_accelerator(row) for row in study if "model" in row}
        columns = {"benchmark": "{work} {model}", "ours, images/s": "{ours.images_per_second:,.0f}"}
        columns |= {"PyTorch": "{torch.images_per_second:,.0f}", "ours / PyTorch": "{ratio.paired:.2f}"}
    elif isinstance(study, dict) and isinstance(study.get("rows"), dict):
        rows, columns = study["rows"], {"images": "{images}"}
    else:
        raise RunError(
            f"{path}: not the results of a study; give protocols.json, probe.json, comparison.json, results.json of a "
            "run, robustness.json, agreement.json, or a file of `histojax bench --json`"
        )
    return {re.sub(r"\W+", "_", name).strip("_"): _kept(row) for name, row in rows.items()}, columns


def dump(content: Any) -> str:
    """Return JSON text, with objects that hold only a few values on one line."""

    def one_line(match: re.Match[str]) -> str:
        text = re.sub(r"\n\s*", " ", match[0])
        return text if len(text) <= 110 else match[0]

    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    return re.sub(r"[{\[]\n[^{}\[\]]*[}\]]", one_line, text) + "\n"


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: not JSON ({error}); write it again") from error


def _of_accelerator(row: Mapping[str, Any]) -> dict[str, Any]:
    """Name the sides of `benchmarks/accelerator.py` without work and model."""
    ours = f" {row['work']} {row['model']}"
    return {key.removesuffix(ours): value for key, value in row.items()}


def _of_probe(study: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a probe with their protocol and their differences from the reference."""
    for one in study["studies"]:
        compared = {row["row"]: row for row in one["differences"]}
        for row in one["rows"]:
            kept = {key: row[key] for key in ("name", "n_images", "n_patients", "metrics")}
            other = compared.get(row["name"], {})
            tests = [test["clusters"] or test["images"] for test in other.get("auroc_tests", {}).values()]
            p = {"holm_p": tests[0]["holm_p"]} if len(tests) == 1 and "holm_p" in tests[0] else {}
            yield {"protocol": one["protocol"], **kept, "differences": other.get("differences"), **p}


def _of_robustness(run: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the row of the unshifted images, that of all shifts together, and a row per shift."""
    facts = {key: run[key] for key in ("model", "image_size", "n_images", "n_patients", "bootstrap")}
    yield {"name": "unshifted", "title": "as they are", "mean": run["unshifted"], "change": None, "worst": None} | facts
    yield {"name": "all", "title": "mean over kinds", "mean": run["mean"], "change": run["change"], "worst": None}
    for shift in run["shifts"]:
        worst = shift["worst"]["balanced_accuracy"]
        yield {key: shift[key] for key in ("name", "title", "unit", "mean", "change")} | {"worst": worst}


def _kept(value: Any) -> Any:
    """Leave out single rounds and profiles of benchmarks, and the folders of this machine in front of names."""
    if isinstance(value, Mapping):
        return {key: _kept(part) for key, part in value.items() if key not in ("rounds", "profile")}
    if isinstance(value, list):
        return [_kept(part) for part in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def describe_machine(host: Mapping[str, Any]) -> str:
    """Describe a machine with the versions that decide speed and rounding."""
    return (
        f"{host['processor']}, {host['cores']} cores, {host['system']}, Python {host['python']}, "
        f"jax {metadata.version('jax')}"
    )


def current_commit() -> str:
    """Return the commit of this checkout, and whether it was changed."""
    state = machine.git_state()
    if state is None:
        raise RunError("--commit: this installation is not a git checkout; state the commit of the study")
    return str(state["commit"][:12]) + (", with uncommitted changes" if state["dirty"] else "")


if __name__ == "__main__":
    main()
