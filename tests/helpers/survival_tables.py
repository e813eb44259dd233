"""The fixed table of made-up patients with what lifelines computes from it, and simulated cohorts."""

import json
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tests.conftest import ROOT

FOLDER = ROOT / "tests" / "fixtures" / "survival"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())


class Patients(NamedTuple):
    """Columns of the fixed table, each (n,)."""

    time: np.ndarray
    event: np.ndarray
    stroma: np.ndarray
    adjusted: np.ndarray  # age and the indicators of stages II and III, (n, 3)


def patients() -> Patients:
    table = pd.read_csv(FOLDER / "table.csv")
    adjusted = [table["age"], table["stage"] == "II", table["stage"] == "III"]
    columns = (table[name].to_numpy(float) for name in ("time", "event", "stroma"))
    return Patients(*columns, np.stack(adjusted, 1).astype(float))


def simulate(rng: np.random.Generator, log_hazard: np.ndarray, rate: float = 0.03) -> tuple[np.ndarray, np.ndarray]:
    """Draw exponential times to the event, censored between 12 and 72: time and event."""
    died = rng.exponential(np.exp(-log_hazard) / rate)
    left = rng.uniform(12, 72, len(log_hazard))
    return np.minimum(died, left), (died <= left).astype(float)
