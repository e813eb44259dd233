"""The rows of a probe's table: what is fitted on what, and the predictions of each fold."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import predictions
from histojax.evaluation.colour import baseline
from histojax.evaluation.colour.features import COLOUR_NAMES
from histojax.evaluation.metrics import Array
from histojax.studies.probe import heads, plans, published
from histojax.studies.probe.heads import Problem
from histojax.studies.probe.inputs import ProbeData
from histojax.studies.probe.plans import Fold, Plan

Fitted = tuple[Array, dict[str, float]]  # probabilities of the test images, and the chosen setting
HEADS = ("linear", "knn", "simpleshot")
COLOUR, TEXTURE, CONSTANT = "colour", "colour and texture", "constant answer"
RANDOM = "random weights"


@dataclasses.dataclass(frozen=True)
class Row:
    """Predictions of one head on one kind of features.

    Attributes:
      features: name of the features, such as a file's stem.
      head: `linear`, `knn`, `simpleshot`, `forest`, `linear (thunder)` …
      fraction: of the training images that have labels.
      tables: predictions of the test images; one table per fold and run, with the runs of a fold together.
      runs: number of runs per fold.
      choices: the settings that were chosen, per table.
    """

    features: str
    head: str
    fraction: float
    tables: tuple[pd.DataFrame, ...]
    runs: int
    choices: tuple[dict[str, float], ...]

    @property
    def name(self) -> str:
        """Features, head and fraction in one line."""
        parts = [self.features] + ([self.head] if self.head else [])
        return ", ".join(parts + ([f"{self.fraction:.0%} of the labels"] if self.fraction < 1 else []))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How heads are fitted.

    Attributes:
      heads: some of `HEADS`.
      fractions: of the training images, in (0, 1]; those below 1 are for `linear` alone.
      C: of `linear`; None: chosen.
      seed: of random numbers.
    """

    heads: Sequence[str] = HEADS
    fractions: Sequence[float] = (1.0,)
    C: float | None = None
    seed: int = 0


def of_features(data: ProbeData, plan: Plan, name: str, features: Array, settings: Settings) -> list[Row]:
    """Fit every head on one kind of features, in each fold.

    Args:
      data: the images.
      plan: the folds.
      name: of the features.
      features: f32 [n, d].
      settings: the heads.
    """
    fits: dict[str, Callable[[Problem], Fitted | list[Fitted]]] = {
        "linear": functools.partial(heads.linear, C=settings.C),
        "knn": heads.knn,
        "simpleshot": lambda problem: heads.simpleshot(problem, settings.seed),
    }
    fits = {head: fits[head] for head in settings.heads}
    if plan.protocol.startswith("eva"):
        fits["linear (eva)"] = lambda problem: published.eva_linear(problem, seed=settings.seed)
    elif plan.protocol.startswith(("thunder", "nanopath")):
        fits["linear (thunder)"] = lambda problem: published.thunder_linear(problem, seed=settings.seed)
    rows = [fit(data, plan, name, head, features, function, settings.seed) for head, function in fits.items()]
    for fraction in settings.fractions:
        if fraction < 1 and "linear" in fits:
            rows.append(fit(data, plan, name, "linear", features, fits["linear"], settings.seed, fraction))
    return rows


def of_colours(data: ProbeData, plan: Plan, features: Array, seed: int) -> list[Row]:
    """Fit the baselines on colour and texture, f32 [n, 96]: settings are fixed, so nothing is chosen."""
    linear = functools.partial(heads.linear, C=baseline.COLOUR_C)

    def forest(problem: Problem) -> Fitted:
        x, labels = problem.features, problem.labels[problem.train]
        return baseline.forest(x[problem.train], labels, x[problem.test], problem.n_classes, seed=seed), {}

    colour = features[:, : len(COLOUR_NAMES)]
    return [
        fit(data, plan, COLOUR, "linear", colour, linear, seed),
        fit(data, plan, TEXTURE, "linear", features, linear, seed),
        fit(data, plan, TEXTURE, "forest", features, forest, seed),
    ]


def of_random_weights(data: ProbeData, plan: Plan, name: str, draws: Sequence[Array], settings: Settings) -> Row:
    """Fit the logistic regression on the features of networks with random weights, which stand as runs of one row.

    Args:
      data: the images.
      plan: the folds.
      name: of the network.
      draws: features of each network, f32 [n, d].
      settings: of the heads.
    """
    linear = functools.partial(heads.linear, C=settings.C)
    fitted = [fit(data, plan, name, "linear", features, linear, settings.seed) for features in draws]
    folds = range(len(plan.folds))
    return dataclasses.replace(
        fitted[0],
        features=f"{RANDOM} ({name})",
        runs=len(draws),
        tables=tuple(row.tables[fold] for fold in folds for row in fitted),
        choices=tuple(row.choices[fold] for fold in folds for row in fitted),
    )


def of_constant(data: ProbeData, plan: Plan, seed: int) -> Row:
    """Answer with the most frequent class of the training images."""

    def constant(problem: Problem) -> Fitted:
        most = np.bincount(problem.labels[problem.train], minlength=problem.n_classes).argmax()
        return np.tile(np.eye(problem.n_classes)[most], (len(problem.test), 1)), {}

    return fit(data, plan, CONSTANT, "", np.zeros((len(data.labels), 1), np.float32), constant, seed)


def fit(
    data: ProbeData,
    plan: Plan,
    name: str,
    head: str,
    features: Array,
    function: Callable[[Problem], Fitted | list[Fitted]],
    seed: int,
    fraction: float = 1.0,
) -> Row:
    """Fit one head in every fold and predict its test images."""
    tables, choices, runs = [], [], 1
    for fold in plan.folds:
        drawn = fold if fraction == 1 else _with_fraction(fold, data, fraction, seed)
        problem = Problem(
            features,
            data.labels,
            len(data.classes),
            drawn.train,
            drawn.test,
            plans.choosing_folds(plan, drawn, data.labels, seed),
        )
        fitted = function(problem)
        of_runs = fitted if isinstance(fitted, list) else [fitted]
        runs = len(of_runs)
        tables += [_table(data, fold, probabilities) for probabilities, _ in of_runs]
        choices += [choice for _, choice in of_runs]
    return Row(name, head, fraction, tuple(tables), runs, tuple(choices))


def pool(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join the tables of several folds and runs into one."""
    return tables[0] if len(tables) == 1 else predictions.pool_folds(tables)


def repeated(row: Row, runs: int) -> Sequence[pd.DataFrame]:
    """Return the tables of a row with one run, repeated so that they stand beside those of a row with several."""
    return [table for table in row.tables for _ in range(runs)] if row.runs == 1 else row.tables


def _with_fraction(fold: Fold, data: ProbeData, fraction: float, seed: int) -> Fold:
    return dataclasses.replace(fold, train=plans.fraction_of(fold.train, data.labels, fraction, seed))


def _table(data: ProbeData, fold: Fold, probabilities: Array) -> pd.DataFrame:
    rows = data.records.take(fold.test)
    columns: dict[str, Any] = {key: rows.column(key).tolist() for key in ("patient_id", "magnification")}
    columns |= {key: values for key in ("case_id", "slide_id") if any(values := rows.column(key).tolist())}
    return predictions.make_table(
        rows.column("image_id").tolist(),
        [data.classes[label] for label in data.labels[fold.test]],
        probabilities,
        data.classes,
        split="test",
        **columns,
    )
