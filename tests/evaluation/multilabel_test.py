"""Tables with labels: metrics equal scikit-learn's, thresholds are the best, intervals equal a plain loop's."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from histojax.evaluation import multilabel, predictions, results, terminal, thresholds
from histojax.evaluation.predictions import PredictionsError

NAMES = ["interstitial", "necrosis", "tumor"]


def random_table(n=120, seed=0, split="test", patients=15, ties=True, prevalence=(0.5, 0.15, 0.7)):
    rng = np.random.default_rng(seed)
    labels = (rng.uniform(size=(n, 3)) < prevalence).astype(int)
    p = np.clip(0.35 * labels + rng.uniform(0, 0.65, (n, 3)), 0, 1)
    return predictions.make_table(
        [f"{split}{i}" for i in range(n)],
        labels,
        np.round(p, 1) if ties else p.astype(np.float32),
        NAMES,
        split=split,
        patient_id=[f"p{i % patients}" for i in range(n)] if patients else None,
    )


def arrays(df):
    return (
        df[[f"label_{name}" for name in NAMES]].to_numpy(),
        df[[f"prob_{name}" for name in NAMES]].to_numpy(),
    )


# --- Metrics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [True, False])
def test_every_metric_equals_scikit_learn(seed, ties):
    df = random_table(seed=seed, ties=ties)
    cuts = dict(zip(NAMES, (0.4, 0.6, 0.5), strict=True))
    y, p = arrays(df)
    predicted = (p >= list(cuts.values())).astype(int)
    block = results.summarise(df, thresholds=cuts, n_resamples=0)["test"]
    for i, name in enumerate(NAMES):
        figures = block["labels"][name]
        true, yes, score = y[:, i], predicted[:, i], p[:, i]
        expected = {
            "accuracy": sk.accuracy_score(true, yes),
            "balanced_accuracy": sk.balanced_accuracy_score(true, yes),
            "precision": sk.precision_score(true, yes),
            "recall": sk.recall_score(true, yes),
            "specificity": sk.recall_score(true, yes, pos_label=0),
            "f1": sk.f1_score(true, yes),
            "gmean": np.sqrt(sk.recall_score(true, yes) * sk.recall_score(true, yes, pos_label=0)),
            "auroc": sk.roc_auc_score(true, score),
            "average_precision": sk.average_precision_score(true, score),
            "brier": sk.brier_score_loss(true, score),
        }
        got = {key: value["value"] for key, value in figures.items() if isinstance(value, dict) and "value" in value}
        assert got == pytest.approx(expected)
        assert figures["n_positive"] == true.sum()
        assert figures["prevalence"] == pytest.approx(true.mean())
        assert figures["threshold"] == cuts[name]
        often = true.mean() > 0.5
        assert figures["baseline"] == {
            "answer": "present" if often else "absent",
            "accuracy": pytest.approx(sk.accuracy_score(true, np.full_like(true, often))),
        }
    expected = {
        "accuracy": (y == predicted).mean(),
        "subset_accuracy": sk.accuracy_score(y, predicted),
        "hamming_loss": sk.hamming_loss(y, predicted),
        "auroc_macro": sk.roc_auc_score(y, p, average="macro"),
        "mean_average_precision": sk.average_precision_score(y, p, average="macro"),
    }
    for average in ("macro", "micro"):
        expected |= {
            f"precision_{average}": sk.precision_score(y, predicted, average=average),
            f"recall_{average}": sk.recall_score(y, predicted, average=average),
            f"f1_{average}": sk.f1_score(y, predicted, average=average),
        }
    assert {name: figure["value"] for name, figure in block["image"].items()} == pytest.approx(expected)
    assert (block["n_images"], block["n_patients"], block["resampled"]) == (120, 15, "patient")
    scores = multilabel.scores(y, p, np.array(list(cuts.values())))
    assert scores == pytest.approx(
        {key: expected[key] for key in ("accuracy", "subset_accuracy", "hamming_loss", "mean_average_precision")}
        | {"f1": expected["f1_macro"]}
    )


def test_the_interval_is_that_of_a_plain_loop_over_patients():
    df = random_table(n=60, patients=12, prevalence=(0.5, 0.4, 0.6)).sort_values("image_id", ignore_index=True)
    block = results.summarise(df, n_resamples=200, seed=3)["test"]
    y, p = arrays(df)
    patients = np.unique(df["patient_id"])
    members = [np.flatnonzero(df["patient_id"] == name) for name in patients]
    rng, found = np.random.default_rng(3), []
    for _ in range(200):
        rows = np.concatenate([members[i] for i in rng.integers(0, 12, 12)])
        found.append(
            [
                sk.f1_score(y[rows, 1], p[rows, 1] >= 0.5),
                sk.roc_auc_score(y[rows, 1], p[rows, 1]),
                sk.f1_score(y[rows], p[rows] >= 0.5, average="micro"),
                sk.accuracy_score(y[rows], p[rows] >= 0.5),
            ]
        )
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    label, image = block["labels"]["necrosis"], block["image"]
    figures = [label["f1"], label["auroc"], image["f1_micro"], image["subset_accuracy"]]
    assert [figure["low"] for figure in figures] == pytest.approx(low.tolist())
    assert [figure["high"] for figure in figures] == pytest.approx(high.tolist())


def test_the_order_of_the_rows_does_not_matter():
    df = random_table(patients=0)
    shuffled = df.sample(frac=1, random_state=1)
    assert results.summarise(df, n_resamples=50) == results.summarise(shuffled, n_resamples=50)


def test_a_label_that_a_split_lacks_is_nan_and_warned_about():
    df = random_table(prevalence=(0.5, 0.0, 0.7))
    block = results.summarise(df, n_resamples=50)["test"]
    figures = block["labels"]["necrosis"]
    for name in ("precision", "recall", "f1", "auroc", "average_precision", "gmean"):
        assert figures[name]["value"] is None, name
    assert figures["accuracy"]["value"] is not None
    assert block["image"]["f1_macro"]["value"] is None
    assert block["image"]["f1_micro"]["value"] is not None
    assert "split 'test': no image carries label 'necrosis'; metrics that need one are nan" in block["warnings"]
    json.dumps(block, allow_nan=False)
    # The scores by which a model is chosen use the labels that are present.
    y, p = arrays(df)
    scores = multilabel.scores(y, p, np.full(3, 0.5))
    assert scores["mean_average_precision"] == pytest.approx(
        sk.average_precision_score(y[:, [0, 2]], p[:, [0, 2]], average="macro")
    )
    nothing = multilabel.scores(np.zeros((4, 2)), np.full((4, 2), 0.2), np.full(2, 0.5))
    assert nothing["accuracy"] == 1
    assert np.isnan(nothing["f1"])


def test_a_label_always_present_or_never_predicted_is_warned_about():
    df = random_table(prevalence=(1.0, 0.4, 0.7))
    df["prob_necrosis"] = df["prob_necrosis"] / 10
    warnings = results.summarise(df, n_resamples=0)["test"]["warnings"]
    assert any("every image carries label 'interstitial'" in warning for warning in warnings)
    assert any("label 'necrosis' is never predicted" in warning for warning in warnings)


def test_a_label_predicted_only_on_its_threshold_is_predicted():
    p = np.array([[0.4], [0.1]])
    df = predictions.make_table(["a", "b"], np.array([[1], [0]]), p, ["tumor"], split="test")
    warnings = {
        cut: results.summarise(df, thresholds={"tumor": cut}, n_resamples=0)["test"]["warnings"]
        for cut in (0.4, float(np.nextafter(0.4, 1)))
    }
    assert [any("never predicted" in text for text in texts) for texts in warnings.values()] == [False, True]


@pytest.mark.parametrize("value", [1, 0])
def test_no_interval_rests_on_one_patient(value):
    df = random_table(patients=15)
    one = df["patient_id"] == "p3"
    df["label_necrosis"] = np.where(one, value, 1 - value)
    block = results.summarise(df, n_resamples=100)["test"]
    figures = block["labels"]["necrosis"]
    assert figures["auroc"]["value"] is not None
    assert figures["auroc"]["low"] is None
    assert block["image"]["auroc_macro"]["low"] is None
    assert figures["accuracy"]["low"] is not None
    which = "with" if value else "without"
    assert any(f"all images {which} label 'necrosis' belong to one patient" in warning for warning in block["warnings"])


@pytest.mark.parametrize(
    ("known", "resampled", "words"),
    [
        (
            {"slide_id": 6, "source_id": 12},
            "slide",
            "patients are unknown; the intervals are over slides and too narrow",
        ),
        ({"source_id": 12}, "source image", "the intervals are over source images and too narrow"),
        ({}, "image", "the intervals are over images and too narrow"),
    ],
)
def test_without_patients_the_next_larger_unit_is_resampled(known, resampled, words):
    df = random_table(patients=0)
    for column, n in known.items():
        df[column] = [f"{column}{i % n}" for i in range(len(df))]
    block = results.summarise(df, n_resamples=20)["test"]
    assert block["resampled"] == resampled
    assert block["n_patients"] is None
    assert block["n_slides"] == known.get("slide_id")
    assert any(words in warning for warning in block["warnings"])
    if known:
        df.loc[3, next(iter(known))] = ""
        assert results.summarise(df, n_resamples=20)["test"]["resampled"] != resampled


def test_thresholds_must_fit_the_table():
    df = random_table()
    with pytest.raises(
        PredictionsError, match="thresholds are given for tumor, but the table has the labels interstitial"
    ):
        results.summarise(df, thresholds={"tumor": 0.5})
    with pytest.raises(PredictionsError, match=r"each must lie in \[0, 1\]"):
        results.summarise(df, thresholds=dict.fromkeys(NAMES, 1.5))
    with pytest.raises(PredictionsError, match="has no positive class"):
        results.summarise(df, positive="tumor")
    single = predictions.make_table(["a"], [0], np.array([[0.9, 0.1]]), ["x", "y"], split="test")
    with pytest.raises(PredictionsError, match="thresholds apply to tables with labels"):
        results.summarise(single, thresholds={"x": 0.5, "y": 0.5})
    with pytest.raises(PredictionsError, match="no single class per group"):
        results.group_table(df)


# --- The table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_survives_writing_and_reading_bit_by_bit(tmp_path, suffix):
    df = random_table(ties=False).assign(slide_id="007", source_id="NA", further=1.5)
    predictions.write(df, tmp_path / "p")
    back = predictions.read(tmp_path / f"p{suffix}")
    pd.testing.assert_frame_equal(back, predictions.normalise(df), check_exact=True)
    assert back["label_tumor"].dtype == np.int64
    y, p = arrays(back)
    assert thresholds.choose_thresholds(y, p, "f1").tolist() == pytest.approx(
        thresholds.choose_thresholds(*arrays(df), "f1").tolist(), abs=0
    )


def test_one_label_is_enough():
    df = predictions.make_table(["a", "b"], np.array([[1], [0]]), np.array([[0.9], [0.2]]), ["tumor"], split="test")
    assert df.columns.tolist() == [*predictions.REQUIRED, "label_tumor", "prob_tumor"]
    assert results.summarise(df, n_resamples=0)["test"]["labels"]["tumor"]["f1"]["value"] == 1.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda df: df.assign(label="tumor"), "both column 'label' and columns 'label_interstitial'"),
        (lambda df: df.drop(columns="prob_tumor"), "column 'label_tumor' .* has no counterpart"),
        (lambda df: df.drop(columns="label_tumor"), "column 'prob_tumor' .* has no counterpart"),
        (
            lambda df: df.assign(label_tumor=2),
            r"column 'label_tumor': 120 of 120 rows are neither 0 nor 1 \(e\.g\. '2'",
        ),
        (lambda df: df.assign(label_tumor=None), "column 'label_tumor': 120 of 120 rows are neither 0 nor 1"),
        (lambda df: df.assign(prob_tumor=1.2), "column 'prob_tumor': .* lie outside .* apply sigmoid to the logits"),
        (lambda df: df.drop(columns="split"), "column 'split' missing"),
        (lambda df: df.drop(columns=[c for c in df if "_" in c and c[:4] in ("labe", "prob")]), "'label' missing"),
    ],
)
def test_a_bad_table_is_refused_with_a_reason(spoil, message):
    with pytest.raises(PredictionsError, match=message):
        predictions.normalise(spoil(random_table()))


def test_labels_and_probabilities_of_other_shapes_are_refused():
    with pytest.raises(PredictionsError, match=r"labels have shape \(2, 2\), probabilities \(2, 3\)"):
        predictions.make_table(["a", "b"], np.zeros((2, 2)), np.zeros((2, 3)), NAMES, split="test")


# --- The terminal -------------------------------------------------------------------------------------------


def test_the_text_puts_baseline_and_paper_beside_the_accuracy():
    df = pd.concat([random_table(split="val", seed=1), random_table()], ignore_index=True)
    out = {
        "protocol": "patient-disjoint",
        "reported": {"source": "a paper, protocol not stated", "label_accuracy": {"tumor": 0.9847, "fat": 0.5}},
        "splits": results.summarise(df, n_resamples=50, thresholds=dict.fromkeys(NAMES, 0.4)),
    }
    lines = terminal.table(out).splitlines()
    start = lines.index(next(line for line in lines if line.startswith("test: 120 images, 15 patients (interstitial")))
    tumor = next(i for i in range(start, len(lines)) if lines[i].strip().startswith("tumor (in "))
    assert "threshold 0.400" in lines[tumor]
    assert lines[tumor + 1].split()[0] == "accuracy"
    assert "[" in lines[tumor + 1]
    assert lines[tumor + 2].split()[:2] == ["always", "present"]
    assert lines[tumor + 3].split()[:2] == ["reported", "0.9847"]
    assert "protocol not stated" in lines[tumor + 3]
    assert sum("reported" in line for line in lines) == 2  # once per split: the paper reports one label
    assert any("mean average precision" in line for line in lines)
    assert max(map(len, lines)) <= 120
