"""From two tables to outcome.json, outcome.csv and a picture; nothing is written before all of it is computed."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import pandas as pd

from histojax import __version__
from histojax.core.csv_format import csv_quoting
from histojax.core.errors import RunError
from histojax.core.files import atomic_write, write_json
from histojax.slides.outcome import analysis, correction, picture, tables, text
from histojax.slides.outcome.spec import COMBINE, USE, OutcomeSpec
from histojax.slides.tsr.spec import Cutoff


def outcome(
    slides: pathlib.Path,
    clinical: pathlib.Path,
    spec: OutcomeSpec,
    output: pathlib.Path,
    agreement: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Measure the association of stroma percentages with outcome, and write it into a folder.

    Args:
      slides: slides.csv of `histojax slide`.
      clinical: table of patients.
      spec: how.
      output: the folder; its earlier results are overwritten.
      agreement: agreement.json of `histojax slide agreement`; None: no corrected hazard ratio.

    Returns:
      The content of outcome.json.

    Raises:
      DataError, RunError: as `tables.join`, `correction.read_slope` and `analysis.analyse`.
    """
    slope = None if agreement is None else correction.read_slope(agreement)
    joined = tables.join(slides, clinical, spec)
    files = {"slides": slides, "clinical": clinical} | ({"agreement": agreement} if agreement else {})
    excluded = joined.exclusions()
    try:
        figures = analysis.analyse(joined.included, spec, slope)
    except RunError as error:  # it may be due to what was left out
        raise RunError("\n".join([str(error), *text.left_out(excluded)])) from error
    result = {
        "use": USE,
        "version": __version__,
        "inputs": {name: {"file": str(path), "sha256": _digest(path)} for name, path in files.items()},
        "settings": dataclasses.asdict(spec) | {"combined": COMBINE[spec.combine]},
        "counts": {
            "slides": len(joined.slides),
            "slides_used": sum(len(patient.slides) for patient in joined.included),
            "patients": len(joined.patients),
        },
        "excluded": excluded,
        "notes": list(joined.notes),
        "figures": figures,
    }
    table, (svg, png) = _table(joined, spec, figures["warnings"]), picture.draw(result)
    output.mkdir(parents=True, exist_ok=True)
    quoting = csv_quoting(cell for column in table for cell in table[column])
    with atomic_write(output / "outcome.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", quoting=quoting)
    for name, content in (("outcome.svg", svg), ("outcome.png", png)):
        with atomic_write(output / name) as temporary:
            temporary.write_bytes(content)
    write_json(output / "outcome.json", result)
    return result


def _table(joined: tables.Joined, spec: OutcomeSpec, warnings: list[str]) -> pd.DataFrame:
    """One row per patient of the clinical table, also of those that are left out."""
    rules = spec.rules()
    rows = []
    for patient in joined.patients:
        classes = {f"class_{name}": _class(rule, patient.percentage) for name, rule in rules.items()}
        rows.append(
            {"patient_id": patient.name, "status": "left out" if patient.excluded else "analysed"}
            | {"reason": patient.excluded[0] if patient.excluded else None, "slides": "; ".join(patient.slides)}
            | {"stroma_percentage": patient.percentage}
            | classes
            | {"time": patient.time, "event": patient.event}
            | {f"adjust_{name}": cell for name, cell in patient.covariates.items()}
            | {"warnings": "; ".join([USE, *warnings])}
        )
    return pd.DataFrame(rows).convert_dtypes()


def _class(rule: Cutoff, percentage: float | None) -> str | None:
    if percentage is None:
        return None
    return analysis.HIGH if rule.high(percentage) else analysis.LOW


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
