import json

import numpy as np
import pandas as pd
import pytest

from histojax.core.files import write_json
from histojax.evaluation import predictions, results, terminal
from histojax.evaluation.predictions import PredictionsError
from tests.helpers.prediction_tables import class_table


def by_hand(rows, patient=("a", "a", "b", "b"), classes=("benign", "malignant")):
    """Rows of (label, probability of the second class)."""
    p = np.array([q for _, q in rows])
    return predictions.make_table(
        [f"i{i}" for i in range(len(rows))],
        [label for label, _ in rows],
        np.stack([1 - p, p], 1),
        classes,
        split="test",
        patient_id=patient,
    )


def test_by_hand():
    df = by_hand([("benign", 0.1), ("benign", 0.6), ("malignant", 0.7), ("malignant", 0.9)])
    block = results.summarise(df, n_resamples=50)["test"]
    assert (block["n_images"], block["n_patients"], block["positive"]) == (4, 2, "malignant")
    assert block["classes"] == {"benign": 2, "malignant": 2}
    assert block["confusion_matrix"] == [[1, 1], [0, 2]]
    expected = {
        "accuracy": 3 / 4,
        "balanced_accuracy": 3 / 4,
        "precision": 2 / 3,
        "recall": 1.0,
        "f1": 4 / 5,
        "precision_macro": 5 / 6,
        "recall_macro": 3 / 4,
        "f1_macro": (2 / 3 + 4 / 5) / 2,
        "gmean": np.sqrt(0.5),
        "iba": (1 + 0.1 * 0.5) * 0.5,
        "auroc": 1.0,
        "average_precision": 1.0,
        "brier": (0.01 + 0.36 + 0.09 + 0.01) / 4,
        "ece": (abs(2 - 1.8) + 0.6 + 0.3) / 4,
        "log_loss": -np.log([0.9, 0.4, 0.7, 0.9]).mean(),
    }
    assert {name: figure["value"] for name, figure in block["image"].items()} == pytest.approx(expected)
    assert block["patient"]["recognition_rate"]["value"] == 3 / 4
    # A tied vote of patient a goes by the mean probability of malignant, 0.35.
    assert block["patient"]["majority_accuracy"]["value"] == 1.0
    assert block["majority_baseline"] == {"class": "benign", "accuracy": 0.5, "gmean": 0.0}
    assert "by_magnification" not in block
    assert "case" not in block


def test_the_positive_class_is_an_argument():
    df = by_hand([("benign", 0.1), ("benign", 0.6), ("malignant", 0.7), ("malignant", 0.9)])
    image = results.summarise(df, positive="benign", n_resamples=0)["test"]["image"]
    assert (image["precision"]["value"], image["recall"]["value"]) == (1.0, 0.5)
    with pytest.raises(PredictionsError, match="positive='cancer' must be one of two"):
        results.summarise(df, positive="cancer")
    with pytest.raises(PredictionsError, match="must be one of two"):
        results.summarise(class_table(3), positive="c0")


@pytest.mark.parametrize("k", [2, 4])
def test_order_of_rows_does_not_matter_to_the_last_bit(k):
    df = class_table(k)
    shuffled = df.sample(frac=1, random_state=1).reset_index(drop=True)
    assert not df.equals(shuffled)
    assert results.summarise(df, n_resamples=50) == results.summarise(shuffled, n_resamples=50)
    unknown = df.assign(patient_id="")
    assert results.summarise(unknown, n_resamples=50) == results.summarise(
        shuffled.assign(patient_id=""), n_resamples=50
    )


def test_many_classes_have_macro_and_class_figures():
    block = results.summarise(class_table(4), n_resamples=50)["test"]
    image, per_class = block["image"], block["per_class"]
    assert block["positive"] is None
    assert list(per_class) == ["c0", "c1", "c2", "c3"]
    for name in ("precision", "recall", "f1", "auroc", "average_precision"):
        mean = np.mean([per_class[c][name]["value"] for c in per_class])
        assert image[name]["value"] == pytest.approx(mean)
    assert image["f1"] == image["f1_macro"]


def test_splits_magnifications_and_cases():
    df = class_table(n=120, split=["test", "val", "train"] * 40)
    out = results.summarise(df, n_resamples=20)
    assert list(out) == ["train", "val", "test"]
    block = out["test"]
    assert list(block["by_magnification"]) == ["40", "100", "200", "400"]
    assert block["n_cases"] == 5
    assert set(block["case"]) == set(block["patient"])
    rows = df[df["split"] == "test"]
    right = (rows["prob_malignant"] > 0.5) == (rows["label"] == "malignant")
    for value, figures in block["by_magnification"].items():
        at = (rows["magnification"] == value).to_numpy()
        assert figures["n_images"] == at.sum()
        assert figures["accuracy"]["value"] == pytest.approx(right[at].mean())
        assert figures["gmean"]["low"] <= figures["gmean"]["value"] <= figures["gmean"]["high"]
    # Cases of two patients of different classes have no single label.
    assert block["case"]["majority_accuracy"]["value"] is None
    assert any("5 of 5 cases have images of several classes" in w for w in block["warnings"])
    alone = results.summarise(rows, n_resamples=20)
    assert alone["test"] == block


def test_an_absent_class_is_null_and_warned_about():
    df = by_hand([("malignant", 0.7), ("malignant", 0.2), ("malignant", 0.8), ("malignant", 0.9)])
    block = results.summarise(df, n_resamples=50)["test"]
    for name in ("balanced_accuracy", "gmean", "iba", "auroc", "f1_macro"):
        assert block["image"][name] == {"value": None, "low": None, "high": None}
    assert block["per_class"]["benign"]["recall"]["value"] is None
    assert block["image"]["accuracy"]["value"] == 3 / 4
    assert block["majority_baseline"] == {"class": "malignant", "accuracy": 1.0, "gmean": None}
    assert block["warnings"][0] == "split 'test': class 'benign' has no image; metrics that need it are nan"
    json.dumps(block, allow_nan=False)
    assert "nan" in terminal.table({"splits": {"test": block}})


def test_a_class_that_is_never_predicted_is_warned_about():
    df = by_hand([("benign", 0.6), ("benign", 0.6), ("malignant", 0.8), ("malignant", 0.9)])
    block = results.summarise(df, n_resamples=50)["test"]
    assert block["per_class"]["benign"]["precision"]["value"] == 0.0
    assert "class 'benign' is never predicted" in block["warnings"][0]


def test_resamples_without_a_class_are_left_out_and_counted():
    df = by_hand(
        [("benign", 0.6), ("benign", 0.6), ("malignant", 0.8), ("malignant", 0.9)] * 2, patient=tuple("aabbccdd")
    )
    block = results.summarise(df, n_resamples=400)["test"]
    # Of four patients two are of each class: one resample in eight draws one class only.
    assert 0.08 < block["image"]["auroc"]["undefined"] < 0.18
    assert any("of the resamples" in warning for warning in block["warnings"])


def test_one_patient_gives_no_intervals_and_a_warning():
    df = by_hand([("benign", 0.1), ("malignant", 0.7)], patient=("a", "a"))
    block = results.summarise(df)["test"]
    figures = [*block["image"].values(), *block["patient"].values()]
    assert all(f["low"] is None and f["high"] is None for f in figures)
    assert block["image"]["accuracy"]["value"] == 1.0
    assert "split 'test': fewer than two patients; no intervals" in block["warnings"]


def test_a_warning_says_that_patients_are_unknown():
    rows = [("benign", 0.1), ("benign", 0.6), ("malignant", 0.7), ("malignant", 0.9)]
    block = results.summarise(by_hand(rows, patient=None), n_resamples=50)["test"]
    assert (block["n_patients"], block["resampled"]) == (None, "image")
    assert "patient" not in block
    assert "patients are unknown" in block["warnings"][0]
    block = results.summarise(by_hand(rows, patient=("a", "", "b", "b")), n_resamples=50)["test"]
    assert block["resampled"] == "image"
    assert "1 of 4 images have no patient_id" in block["warnings"][0]


def test_a_class_absent_at_a_magnification_is_warned_about():
    df = class_table(magnification=["40", "100"] * 60)  # every second image is benign
    block = results.summarise(df, n_resamples=20)["test"]
    assert block["by_magnification"]["40"]["gmean"]["value"] is None
    assert "split 'test': no image of class 'malignant' at 40; gmean is nan" in block["warnings"]
    assert "split 'test': no image of class 'benign' at 100; gmean is nan" in block["warnings"]


def test_group_table():
    df = by_hand([("benign", 0.1), ("benign", 0.6), ("malignant", 0.7), ("benign", 0.9)])
    expected = pd.DataFrame(
        {
            "split": ["test", "test"],
            "patient_id": ["a", "b"],
            "label": ["benign", ""],
            "n_images": [2, 2],
            "share_right": [0.5, 0.5],
            "majority": ["benign", "malignant"],
            "prob_benign": [0.65, 0.2],
            "prob_malignant": [0.35, 0.8],
        }
    )
    pd.testing.assert_frame_equal(results.group_table(df), expected, check_dtype=False)
    with pytest.raises(PredictionsError, match="'patient_id': missing or empty in all 4 rows"):
        results.group_table(df.assign(patient_id=""))
    with pytest.raises(PredictionsError, match="'case_id'"):
        results.group_table(df, by="case_id")


def test_table_prints_the_two_numbers_side_by_side():
    df = class_table()
    out = {
        "protocol": "image",
        "split_hash": "3f2a",
        "data": {"description": "synthetic", "n_images": 3},
        "splits": results.summarise(df, n_resamples=99),
    }
    text = terminal.table(out)
    lines = text.splitlines()
    assert lines[0].split() == ["protocol", "image"]
    assert lines[2].split() == ["data", "synthetic"]
    assert "checkpoint" not in text
    block = out["splits"]["test"]
    at = next(i for i, line in enumerate(lines) if line.startswith("  accuracy"))
    accuracy = block["image"]["accuracy"]
    assert lines[at].split(maxsplit=2) == [
        "accuracy",
        f"{accuracy['value']:.4f}",
        f"[{accuracy['low']:.4f}, {accuracy['high']:.4f}]",
    ]
    assert "always 'benign'" in lines[at + 1]
    assert "0.5000" in lines[at + 1]
    assert "patient recognition rate" in lines[at + 2]
    assert f"{block['patient']['recognition_rate']['value']:.4f}" in lines[at + 2]
    assert text.rstrip().splitlines()[-1].startswith("warning: split 'test'")


def test_json_is_strict_and_written_atomically(tmp_path):
    path = tmp_path / "results.json"
    out = {"protocol": "patient", "splits": results.summarise(class_table(), n_resamples=20)}
    write_json(path, out)
    assert json.loads(path.read_text()) == out
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"splits": {"x": float("nan")}})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_metrics_that_need_a_class_of_one_patient_have_no_interval():
    """Otherwise GMean would seem to be known exactly: every resample that defines it holds the same patient."""
    n = 40
    malignant = np.r_[np.zeros(10), np.ones(30)].astype(int)
    probability = np.where(malignant == 1, 0.8, 0.3)
    probability[[0, 1, 12, 13, 33]] = 0.55, 0.6, 0.4, 0.3, 0.45
    df = predictions.make_table(
        [f"i{i}" for i in range(n)],
        malignant,
        np.stack([1 - probability, probability], 1),
        ["benign", "malignant"],
        split="test",
        patient_id=[f"p{i // 10}" for i in range(n)],
    )
    block = results.summarise(df, n_resamples=200)["test"]
    for name in ("gmean", "iba", "auroc", "balanced_accuracy", "recall_macro"):
        figure = block["image"][name]
        assert figure["value"] is not None
        assert figure["low"] is figure["high"] is None, name
    assert block["per_class"]["benign"]["recall"]["low"] is None
    for name in ("accuracy", "recall", "precision"):
        assert block["image"][name]["low"] < block["image"][name]["value"] < block["image"][name]["high"], name
    text = " ".join(block["warnings"])
    assert "all images of class 'benign' belong to one patient" in text
    assert "only 4 patients" in text
