"""`histojax probe`: fit heads on frozen features under split protocols, beside what colour and texture predict."""

import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import histojax
from data_pipelines import protocols
from histojax.core import machine
from histojax.core.errors import RunError
from histojax.core.positive import positive_by_name
from histojax.core.suggestions import did_you_mean
from histojax.evaluation import comparison, feature_files, paired, results
from histojax.evaluation.colour import cache
from histojax.studies.probe import embedding, inputs, plans, rows, trained
from histojax.studies.probe.inputs import ProbeData
from histojax.studies.probe.plans import Plan
from histojax.studies.probe.rows import Row, Settings

_log = logging.getLogger(__name__)
# Metric of the table -> its level and name in results.json.
METRICS = {
    "accuracy": ("image", "accuracy"),
    "balanced_accuracy": ("image", "balanced_accuracy"),
    "f1_macro": ("image", "f1_macro"),
    "gmean": ("image", "gmean"),
    "iba": ("image", "iba"),
    "auroc": ("image", "auroc"),
    "patient_recognition_rate": ("patient", "recognition_rate"),
}
DEFAULT_REFERENCE = f"{rows.TEXTURE}, linear"


@dataclasses.dataclass(frozen=True)
class Options:
    """What a probe does.

    Attributes:
      protocols: names of split protocols.
      split: a file with splits, in place of protocols.
      kfolds: folds of protocols that draw them; 0: one hold-out.
      folds_dir: folder with dsfold1.txt …, for `folds`.
      images: the images' root; None: no rows of colour and texture.
      task: `binary` or `subtype`; empty: the protocol's, else binary.
      magnification: only images of this magnification; empty: the protocol's, else all.
      settings: of the heads.
      reference: name of the row that all others are compared with; empty: colour and texture, else the first.
      resamples: of the bootstrap.
      draws: networks with random weights that stand beside the first features; 0: none.
    """

    protocols: Sequence[str] = ("auto",)
    split: pathlib.Path | None = None
    kfolds: int = 5
    folds_dir: pathlib.Path | None = None
    images: pathlib.Path | None = None
    task: str = ""
    magnification: str = ""
    settings: Settings = dataclasses.field(default_factory=Settings)
    reference: str = ""
    resamples: int = 2000
    draws: int = 0


def probe(paths: Sequence[pathlib.Path], options: Options) -> dict[str, Any]:
    """Run a probe.

    Args:
      paths: files of features of the same images, or runs, which embed the images below `options.images`. Besides
        these, work directories of `histojax protocols`, whose predictions are rows under the same folds.
      options: protocols and heads.

    Returns:
      JSON-able results: `features`, and in `studies` one entry per protocol with `rows` and `differences`.

    Raises:
      RunError, DataError: the files do not fit each other or the protocol; the message names the file.
    """
    finished = [path for path in paths if trained.is_study(path)]
    files = _files([path for path in paths if path not in finished], options.images)
    draws, note = _random_draws(next(iter(files.values())), options)
    studies = []
    tables: dict[tuple[str, str], ProbeData] = {}  # by task and magnification; reading hashes the pixels of each image
    for name in ("",) if options.split else options.protocols:
        task, magnification = inputs.check_protocol(plans.NANOPATH.get(name, name), options.task, options.magnification)
        if (task, magnification) not in tables:
            tables[task, magnification] = inputs.read(
                files | draws, options.images, task=task, magnification=magnification
            )
        data = tables[task, magnification]
        study = _study(data, name, list(draws), finished, options)
        study["notes"] += [note] if note else []
        studies.append(study)
    return {
        "histojax": histojax.__version__,
        "git": machine.git_state(),
        "machine": machine.describe(),
        "features": [
            {"name": name, "path": str(path), "sha256": _sha256(path), "made_by": dict(metadata)}
            for (name, path), metadata in zip((files | draws).items(), data.metadata.values(), strict=True)
        ],
        "trained": [trained.describe(path) for path in finished],
        "settings": dataclasses.asdict(options.settings) | {"resamples": options.resamples},
        "studies": studies,
    }


def _files(paths: Sequence[pathlib.Path], images: pathlib.Path | None) -> dict[str, pathlib.Path]:
    """Return the files of features by name: the file's stem or the run's folder, or the path where these repeat.

    Raises:
      RunError: no path, or a run without images to embed.
    """
    if not paths:
        raise RunError("give a file of features as well, which names the images: `histojax embed` writes it")
    stems = [path.name if path.is_dir() else path.stem for path in paths]
    files = {}
    for path, stem in zip(paths, stems, strict=True):
        name = stem if stems.count(stem) == 1 else str(path)
        if path.is_dir() and images is None:
            raise RunError(f"{path} is a run: give the images with --images ROOT, or a file that histojax embed wrote")
        files[name] = embedding.of_run(path, images) if images and path.is_dir() else path
    return files


def _random_draws(path: pathlib.Path, options: Options) -> tuple[dict[str, pathlib.Path], str]:
    """Embed the images with the network of a file, with random weights; or say why that cannot be done.

    Returns:
      Name -> file of features, and a note.
    """
    if not options.draws:
        return {}, ""
    if options.images is None:
        return {}, "no row of random weights: give the images with --images ROOT"
    metadata = feature_files.read(path).metadata
    draws = {}
    for seed in range(options.draws):
        found = embedding.of_random_weights(metadata, options.images, seed)
        if found is None:
            return {}, f"no row of random weights: {path} is of no model of this program"
        draws[f"{rows.RANDOM} {seed}"] = found
    return draws, ""


def _study(
    data: ProbeData, name: str, draws: Sequence[str], finished: Sequence[pathlib.Path], options: Options
) -> dict[str, Any]:
    """Fit every row under one protocol, and add those of finished studies; `draws`: features of random weights."""
    registered = protocols.REGISTRY.get(plans.NANOPATH.get(name, name))
    if registered and registered.classes:
        data = inputs.limit_classes(data, registered.classes)
    seed = options.settings.seed
    if options.split:
        plan = plans.plan_of_file(data, options.split)
    else:
        plan = plans.plan(data, name, kfolds=options.kfolds, folds_dir=options.folds_dir, seed=seed)
    fitted, notes = [rows.of_constant(data, plan, seed)], []
    if data.root is not None:
        colours = cache.of_images(data.records.column("pixel_hash").tolist(), data.pixels)
        fitted += rows.of_colours(data, plan, colours, seed)
    else:
        notes.append("no rows of colour and texture: give the images with --images ROOT")
    if draws:
        first = next(iter(data.features))
        fitted.append(
            rows.of_random_weights(data, plan, first, [data.features[draw] for draw in draws], options.settings)
        )
    for kind, features in data.features.items():
        if kind in draws:
            continue
        _log.info(f"{plan.protocol}: {kind}")
        fitted += rows.of_features(data, plan, kind, features, options.settings)
    for path in finished:
        row = trained.of_study(data, plan, path)
        fitted += [row] if row else []
        notes += [] if row else [f"{path} has no runs that tested the same images in the same folds"]
    positive = positive_by_name(data.classes)
    described = [_describe_row(row, plan, positive, options) for row in fitted]
    reference = _reference(fitted, options.reference)
    differences = [_difference(reference, row, positive, options) for row in fitted if row is not reference]
    _adjust_p_values(differences)
    return {
        **plans.describe(plan, data.labels.tolist()),
        "classes": list(data.classes),
        "positive": positive,
        "data_hash": data.hash,
        "n_patients": len({record.patient_id for record in data.records} - {""}),
        "rows": described,
        "reference": reference.name,
        "differences": differences,
        "notes": notes,
    }


def _describe_row(row: Row, plan: Plan, positive: str | None, options: Options) -> dict[str, Any]:
    """Evaluate a row: every metric with its interval over all folds, and its value per fold."""
    seed = options.settings.seed
    pooled = rows.pool(row.tables)
    block = results.summarise(pooled, positive=positive, n_resamples=options.resamples, seed=seed)["test"]
    by_fold = [row.tables[i : i + row.runs] for i in range(0, len(row.tables), row.runs)]
    folds = [results.summarise(rows.pool(tables), positive=positive, n_resamples=0)["test"] for tables in by_fold]
    return {
        "name": row.name,
        "features": row.features,
        "head": row.head,
        "fraction": row.fraction,
        "runs": row.runs,
        "n_images": block["n_images"],
        "n_patients": block["n_patients"],
        "resampled": block["resampled"],
        "metrics": _metrics(block),
        "folds": [
            {"name": fold.name} | {key: estimate["value"] for key, estimate in _metrics(fold_block).items()}
            for fold, fold_block in zip(plan.folds, folds, strict=True)
        ],
        "choices": list(row.choices),
        "warnings": block["warnings"],
    }


def _metrics(block: Mapping[str, Any]) -> dict[str, Any]:
    """Take the metrics of the table out of a block of results.json; without patients, theirs is missing."""
    return {key: block[level][name] for key, (level, name) in METRICS.items() if name in block.get(level, {})}


def _reference(fitted: Sequence[Row], name: str) -> Row:
    """Return the row that the others are compared with.

    Raises:
      RunError: there is no row of that name.
    """
    by_name = {row.name: row for row in fitted}
    if name:
        if name not in by_name:
            hint = did_you_mean(name, list(by_name))
            raise RunError(f"--reference={name}: no such row{hint}; rows: {'; '.join(by_name)}")
        return by_name[name]
    return by_name.get(DEFAULT_REFERENCE) or fitted[1 if len(fitted) > 1 else 0]


def _difference(reference: Row, row: Row, positive: str | None, options: Options) -> dict[str, Any]:
    """Compare a row with the reference on the same images; differences are the row's minus the reference's."""
    runs = max(reference.runs, row.runs)
    first, second = (rows.pool(rows.repeated(one, runs)) for one in (reference, row))
    compared = comparison.compare(
        first, second, positive=positive, n_resamples=options.resamples, seed=options.settings.seed
    )
    differences = {key.replace(" ", "_"): estimate for key, estimate in compared["differences"].items()}
    return {
        "row": row.name,
        "differences": {key: estimate for key, estimate in differences.items() if key in METRICS},
        "auroc_tests": compared["auroc"],
        "resampled": compared["resampled"],
        "warnings": compared["warnings"],
    }


def _adjust_p_values(differences: Sequence[Mapping[str, Any]]) -> None:
    """Add Holm's adjusted p value to the test of each area under the ROC curve, over all rows of a table."""
    for name in dict.fromkeys(name for difference in differences for name in difference["auroc_tests"]):
        both = [difference["auroc_tests"].get(name, {}) for difference in differences]
        tests = [test["clusters"] or test["images"] for test in both if test]
        tests = [test for test in tests if test["p"] is not None]
        for test, p in zip(tests, paired.holm([test["p"] for test in tests]), strict=True):
            test["holm_p"] = p


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
