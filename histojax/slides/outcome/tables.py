"""slides.csv and a clinical table, joined to one row per patient; what is left out has a reason and a remedy."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from data_pipelines.tables import read_table
from histojax.core.errors import RunError
from histojax.core.printable import printable
from histojax.core.suggestions import did_you_mean
from histojax.slides.outcome.spec import PARTS, OutcomeSpec

_MAX_LISTED = 5  # rows or names that a message lists
_EVENTS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}
# Why a slide or patient is left out: reason and remedy.
FAILED = ("histojax slide failed", "see the column reason of slides.csv, and rerun histojax slide")
NOT_EVALUABLE = ("not evaluable", "see the column why_not of slides.csv; leave the slide out, or scan another")
NO_PATIENT = ("no patient", "name the slide's patient, or correct --patient_pattern")
NOT_IN_CLINICAL = ("patient not in the clinical table", "add the patient there, or correct the spelling")
NO_OUTCOME = ("time or event is empty", "fill in both")
NO_FOLLOW_UP = ("time is not above 0", "correct the time; a patient without follow-up says nothing about outcome")
NO_COVARIATE = ("a column of --adjust is empty", "fill it in, or drop the column from --adjust")
NO_SLIDE = ("no slide", "analyse a slide of the patient, or correct the spelling of the patient's name")
NO_EVALUABLE_SLIDE = ("no slide is evaluable", "scan another slide, or leave the patient out")


@dataclasses.dataclass(frozen=True)
class SlideRow:
    """A slide of slides.csv.

    Attributes:
      place: file and line, for messages.
      name: the slide's name.
      patient: its patient; empty if unknown.
      percentage: stroma percentage, 0 … 100; None if there is none.
      area: area of tumor and stroma in mm²; None if the table lacks it.
      excluded: reason and remedy; None if the slide has a percentage and a patient.
    """

    place: str
    name: str
    patient: str
    percentage: float | None
    area: float | None
    excluded: tuple[str, str] | None


@dataclasses.dataclass(frozen=True)
class Patient:
    """A patient of the clinical table.

    Attributes:
      place: file and line, for messages.
      name: the patient's name.
      time: follow-up; None if unknown.
      event: 1 or 0; None if unknown.
      covariates: cells of the columns of --adjust.
      slides: names of the evaluable slides.
      percentage: stroma percentage of the patient; None without an evaluable slide.
      excluded: reason and remedy; None if the patient is analysed.
    """

    place: str
    name: str
    time: float | None
    event: int | None
    covariates: Mapping[str, str]
    slides: tuple[str, ...] = ()
    percentage: float | None = None
    excluded: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Joined:
    """Slides and patients, both sorted by name, with what was left out, and notes about the tables."""

    slides: Sequence[SlideRow]
    patients: Sequence[Patient]
    notes: Sequence[str]

    @property
    def included(self) -> list[Patient]:
        """The patients that are analysed."""
        return [patient for patient in self.patients if patient.excluded is None]

    def exclusions(self) -> list[dict[str, Any]]:
        """What was left out, JSON-able: per kind and reason the count, the remedy and the names."""
        names: dict[tuple[str, tuple[str, str]], list[str]] = {}
        for kind, rows in (("slide", self.slides), ("patient", self.patients)):
            for row in rows:
                if row.excluded is not None:
                    names.setdefault((kind, row.excluded), []).append(row.name)
        return [
            {"kind": kind, "reason": reason, "count": len(who), "remedy": remedy, "names": who}
            for (kind, (reason, remedy)), who in names.items()
        ]


def join(slides: pathlib.Path, clinical: pathlib.Path, spec: OutcomeSpec) -> Joined:
    """Read both tables and join slides to patients.

    Args:
      slides: slides.csv of `histojax slide`.
      clinical: a table with one row per patient, or per slide with `spec.slide_column`.
      spec: names of columns, and how slides are joined and combined.

    Raises:
      DataError: a table cannot be read.
      RunError: a column is missing, a cell is not what its column holds, two rows contradict each other, or no slide
        belongs to a patient of the clinical table.
    """
    notes: list[str] = []
    patients, owners = _read_clinical(clinical, spec, notes)
    rows = _read_slides(slides, spec, owners, notes)
    rows = [
        dataclasses.replace(row, excluded=NOT_IN_CLINICAL)
        if row.excluded is None and row.patient not in patients
        else row
        for row in rows
    ]
    if not any(row.patient in patients for row in rows):
        theirs = sorted({row.patient for row in rows if row.patient})
        raise RunError(
            f"no slide of {slides} belongs to a patient of {clinical}: the slides' patients are {_few(theirs)}, those "
            f"of the table {_few(patients)}. Spell both alike, or correct --patient_pattern"
        )
    per_patient: dict[str, list[SlideRow]] = {}
    for row in rows:
        per_patient.setdefault(row.patient, []).append(row)
    joined = [_with_slides(patient, per_patient.get(name, []), spec) for name, patient in patients.items()]
    return Joined(sorted(rows, key=lambda row: row.name), sorted(joined, key=lambda one: one.name), notes)


def _with_slides(patient: Patient, rows: Sequence[SlideRow], spec: OutcomeSpec) -> Patient:
    """The patient with the combined percentage of its slides, or with the reason why it is left out."""
    usable = [row for row in rows if row.excluded is None and row.percentage is not None]
    excluded = patient.excluded
    if excluded is None and not usable:
        excluded = NO_EVALUABLE_SLIDE if rows else NO_SLIDE
    return dataclasses.replace(
        patient, slides=tuple(sorted(row.name for row in usable)), percentage=_combined(usable, spec), excluded=excluded
    )


def _combined(rows: Sequence[SlideRow], spec: OutcomeSpec) -> float | None:
    """The stroma percentage of a patient's slides; None without any."""
    percentages = [row.percentage for row in rows if row.percentage is not None]
    if not percentages:
        return None
    if spec.combine == "highest" or len(rows) == 1:
        return max(percentages)
    areas = [row.area for row in rows if row.area]
    if len(areas) < len(rows):
        raise RunError(
            f"{rows[0].place}: column {PARTS[spec.part]}tumor_and_stroma_mm2 is missing, empty or 0, but "
            "--combine=area weights by it. Rerun the same histojax slide command, which adds the column and keeps "
            "finished slides; or use --combine=highest"
        )
    return sum(p * a for p, a in zip(percentages, areas, strict=True)) / sum(areas)


# --- slides.csv ---------------------------------------------------------------------------------------------


def _read_slides(path: pathlib.Path, spec: OutcomeSpec, owners: Mapping[str, str], notes: list[str]) -> list[SlideRow]:
    """Read slides.csv; `owners` is the patient of each slide by the clinical table."""
    columns, lines = read_table(path)
    prefix = PARTS[spec.part]
    wanted = f"{prefix}stroma_percentage"
    if "name" not in columns or wanted not in columns:
        remedy = {"region": "run histojax slide with --roi; or choose another --part"}.get(
            spec.part, "give slides.csv of histojax slide, of a model with labels for tumor and stroma"
        )
        raise RunError(f"{path}: no column {wanted if 'name' in columns else 'name'}: {remedy}")
    found: dict[str, SlideRow] = {}
    for place, cells in lines:
        row = _slide(place, cells, prefix, _owner(cells, spec, owners))
        earlier = found.setdefault(row.name, row)
        if earlier is not row and dataclasses.replace(row, place=earlier.place) != earlier:
            raise RunError(f"{earlier.place}, and {place}: two different rows of slide '{row.name}'; keep one of them")
        if earlier is not row:
            notes.append(f"{place}: repeats the row of slide '{row.name}'; it counts once")
    if not found:
        raise RunError(f"{path}: no rows; histojax slide has analysed no slide")
    if not (spec.patient_pattern or spec.slide_column or any(row.patient for row in found.values())):
        raise RunError(
            f"{path}: nothing says which patient a slide belongs to. Give --patient_pattern='(?P<patient>…)' for the "
            "slides' names, or --slide_column for a column of slide names in the clinical table, or add a column "
            "patient_id to the list of slides and rerun the same histojax slide command, which keeps finished slides"
        )
    return list(found.values())


def _owner(cells: Mapping[str, str], spec: OutcomeSpec, owners: Mapping[str, str]) -> str:
    """The patient of a slide; empty if unknown."""
    if spec.patient_pattern:
        match = re.search(spec.patient_pattern, cells["name"])
        return (match["patient"] or "") if match else ""
    return owners.get(cells["name"], "") if spec.slide_column else cells.get("patient_id", "")


def _slide(place: str, cells: Mapping[str, str], prefix: str, patient: str) -> SlideRow:
    """One row of slides.csv."""
    text, area = cells[f"{prefix}stroma_percentage"], cells.get(f"{prefix}tumor_and_stroma_mm2", "")
    excluded = None
    if cells.get("status", "") == "failed":
        excluded = FAILED
    elif not text or cells.get(f"{prefix}ratio", "evaluated") != "evaluated":
        excluded = NOT_EVALUABLE
    elif not patient:
        excluded = NO_PATIENT
    percentage = None
    if excluded not in (FAILED, NOT_EVALUABLE):
        percentage = _number(text, f"{place}, column {prefix}stroma_percentage", "a percentage")
        if not 0 <= percentage <= 100:
            raise RunError(f"{place}, column {prefix}stroma_percentage: {text} is not between 0 and 100")
    mm2 = _number(area, f"{place}, column {prefix}tumor_and_stroma_mm2", "an area in mm²") if area else None
    return SlideRow(place, cells["name"], patient, percentage, mm2, excluded)


# --- The clinical table -------------------------------------------------------------------------------------


def _read_clinical(
    path: pathlib.Path, spec: OutcomeSpec, notes: list[str]
) -> tuple[dict[str, Patient], dict[str, str]]:
    """Read the clinical table: its patients by name, and the patient of each slide that it names."""
    columns, lines = read_table(path)
    flags = {"--patient_column": spec.patient_column, "--time_column": spec.time_column}
    flags |= {"--event_column": spec.event_column, "--slide_column": spec.slide_column}
    for flag, name in [*flags.items(), *(("--adjust", name) for name in spec.adjust)]:
        if name and name not in columns:
            raise RunError(
                f"{path}: no column {name}{did_you_mean(name, columns)}; name it with {flag}. The columns are "
                f"{printable(', '.join(columns))}"
            )
    patients: dict[str, Patient] = {}
    owners: dict[str, str] = {}
    wrong_events: list[str] = []
    contradictions: list[str] = []
    for place, cells in lines:
        patient = _patient(place, cells, spec, wrong_events)
        earlier = patients.setdefault(patient.name, patient)
        slide = cells[spec.slide_column] if spec.slide_column else ""
        if earlier is not patient and dataclasses.replace(patient, place=earlier.place) != earlier:
            contradictions.append(f"{earlier.place}, and {place}: patient '{patient.name}'")
        elif earlier is not patient and not slide:
            notes.append(f"{place}: repeats the row of patient '{patient.name}'; it counts once")
        if slide and owners.setdefault(slide, patient.name) != patient.name:
            contradictions.append(f"{place}: slide '{slide}' of both '{owners[slide]}' and '{patient.name}'")
    if wrong_events:
        _refuse(
            wrong_events,
            f"{len(wrong_events)} cells of column {spec.event_column} are not 0, 1, true or "
            "false: write 1 where the event was observed, and 0 where follow-up ended without it",
        )
    if contradictions:
        _refuse(
            contradictions,
            f"{len(contradictions)} rows of {path} contradict an earlier one in time, "
            "event, a column of --adjust, or the patient of a slide: keep one of each, or make them equal",
        )
    if not patients:
        raise RunError(f"{path}: no rows; it needs one per patient")
    return patients, owners


def _patient(place: str, cells: Mapping[str, str], spec: OutcomeSpec, wrong_events: list[str]) -> Patient:
    """One row of the clinical table; a cell that is no event is added to `wrong_events`."""
    name = cells[spec.patient_column]
    if not name:
        raise RunError(f"{place}, column {spec.patient_column}: empty; name the patient or delete the row")
    event = cells[spec.event_column]
    if event and event.lower() not in _EVENTS:
        wrong_events.append(f"{place}, column {spec.event_column}: '{printable(event)}'")
    text = cells[spec.time_column]
    time = _number(text, f"{place}, column {spec.time_column}", f"a time in {spec.time_unit}") if text else None
    covariates = {column: cells[column] for column in spec.adjust}
    excluded = None
    if time is None or not event:
        excluded = NO_OUTCOME
    elif time <= 0:
        excluded = NO_FOLLOW_UP
    elif not all(covariates.values()):
        excluded = NO_COVARIATE
    return Patient(place, name, time, _EVENTS.get(event.lower()), covariates, excluded=excluded)


def _number(text: str, place: str, what: str) -> float:
    """The number in a cell.

    Raises:
      RunError: the cell holds none, or one that is not finite.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        comma = "; write a decimal point" if re.fullmatch(r"-?\d+,\d+", text) else "; leave unknown cells empty"
        raise RunError(f"{place}: '{printable(text)}' is not {what}{comma}")
    return value


def _refuse(rows: Sequence[str], what: str) -> NoReturn:
    """Raise RunError for rows of a table; `what` says what is wrong with them, and what to do."""
    raise RunError("\n".join([*listed(rows), what]))


def listed(lines: Sequence[str]) -> list[str]:
    """The first of the lines, and how many more there are."""
    more = [f"and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
    return [*lines[:_MAX_LISTED], *more]


def _few(names: Iterable[str]) -> str:
    """The first of the names."""
    names = list(names)
    quoted = ", ".join(f"'{name}'" for name in names[:_MAX_LISTED])
    return f"{quoted or 'unknown'}{', …' if len(names) > _MAX_LISTED else ''}"
