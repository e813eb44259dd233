"""Tables of predictions for tests: random ones with patients, cases and magnifications."""

import numpy as np
import pandas as pd

from histojax.evaluation import predictions


def class_table(k=2, n=120, n_patients=10, seed=0, **columns):
    """`n` test images of `k` exclusive classes; the class belongs to the patient, and two patients share a case."""
    rng = np.random.default_rng(seed)
    patient = np.arange(n) % n_patients
    true = patient % k
    p = rng.dirichlet(np.ones(k), n)
    p[np.arange(n), true] += 0.5
    p /= p.sum(1, keepdims=True)
    defaults = {
        "split": "test",
        "patient_id": [f"p{x:02d}" for x in patient],
        "case_id": [f"c{x // 2:02d}" for x in patient],
        "magnification": [("40", "100", "200", "400")[i // 2 % 4] for i in range(n)],
    }
    names = ["benign", "malignant"] if k == 2 else [f"c{i}" for i in range(k)]
    return predictions.make_table([f"i{i:04d}" for i in range(n)], true, p, names, **(defaults | columns))


def with_validation(k=2):
    """120 test images of ten (k = 2) or twelve patients, 60 validation images of others; each case has one class."""
    n_patients = {2: 10, 3: 12, 4: 12}[k]
    test = class_table(k=k, n_patients=n_patients)
    val = class_table(k=k, n_patients=n_patients, n=60, seed=7, split="val")
    for table in (test, val):
        table["case_id"] = [f"c{int(patient[1:]) % (2 * k)}" for patient in table["patient_id"]]
    for name in ("image_id", "patient_id", "case_id"):
        val[name] = "v" + val[name]
    return predictions.normalise(pd.concat([test, val]))


def labels_table(n=160, seed=0):
    """`n` images with any of three labels; a quarter of them are validation images of other patients."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, 3)) < [0.5, 0.3, 0.1]
    p = 1 / (1 + np.exp(-(rng.normal(size=(n, 3)) + 2 * labels - 1)))
    return predictions.make_table(
        [f"t{i:03d}" for i in range(n)], labels.astype(int), p, ["tumor", "stroma", "fat"],
        split=["val" if i % 4 == 0 else "test" for i in range(n)],
        patient_id=[f"{'v' if i % 4 == 0 else 'p'}{i % 16}" for i in range(n)],
    )  # fmt: skip


def with_faultless_validation(table):
    """The table with validation images that are all right: the smallest temperature fits them, and not the test."""
    table = table.copy()
    scores = predictions.class_names(table)
    true = np.stack([table.get(f"label_{name}", table.get("label") == name) for name in scores], 1).astype(bool)
    val = (table["split"] == "val").to_numpy()
    table.loc[val, [f"prob_{name}" for name in scores]] = np.where(true, 0.9, 0.1)[val]
    return table
