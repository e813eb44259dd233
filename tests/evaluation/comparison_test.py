import numpy as np
import pytest
import sklearn.metrics as sk

from histojax.core.errors import RunError
from histojax.evaluation import bootstrap, comparison, predictions, results
from tests.helpers.prediction_tables import class_table


def pair(n=240, n_patients=12, seed=0):
    """Two tables of the same images, patients and labels."""
    return class_table(n=n, n_patients=n_patients, seed=seed), class_table(n=n, n_patients=n_patients, seed=seed + 1)


def test_differences_equal_a_loop_over_the_same_resamples():
    first, second = pair()
    found = comparison.compare(first, second, n_resamples=60, seed=3)
    assert (found["n_images"], found["resampled"], found["only_first"]["n_images"]) == (240, "patient", 0)
    _, unit, n_units = bootstrap.units(first["patient_id"].to_numpy())
    loops = {"accuracy": [], "auroc": [], "brier": [], "patient recognition_rate": []}
    y = (first["label"] == "malignant").to_numpy()
    scores = [df["prob_malignant"].to_numpy() for df in (first, second)]
    for weights in np.concatenate(list(bootstrap.weight_chunks(n_units, 60, 3))).astype(int):
        rows = np.repeat(np.arange(240), weights[unit])
        for name, of in (
            ("accuracy", lambda p, rows=rows: sk.accuracy_score(y[rows], p[rows] > 0.5)),
            ("auroc", lambda p, rows=rows: sk.roc_auc_score(y[rows], p[rows])),
            ("brier", lambda p, rows=rows: sk.brier_score_loss(y[rows], p[rows])),
        ):
            loops[name].append(of(scores[1]) - of(scores[0]))
        rates = [
            np.repeat([np.mean((p > 0.5)[unit == g] == y[unit == g]) for g in range(n_units)], weights).mean()
            for p in scores
        ]
        loops["patient recognition_rate"].append(rates[1] - rates[0])
    for name, values in loops.items():
        figure = found["differences"][name]
        assert [figure["low"], figure["high"]] == pytest.approx(np.percentile(values, [2.5, 97.5]).tolist()), name
    whole = [results.summarise(df, n_resamples=0)["test"]["image"] for df in (first, second)]
    for name in ("accuracy", "f1", "gmean", "ece"):
        expected = whole[1][name]["value"] - whole[0][name]["value"]
        assert found["differences"][name]["value"] == pytest.approx(expected), name


def test_counts_of_mcnemar_and_the_order_of_rows():
    first, second = pair()
    right = [((df["prob_malignant"] > 0.5) == (df["label"] == "malignant")).to_numpy() for df in (first, second)]
    found = comparison.compare(first, second.sample(frac=1, random_state=0), n_resamples=0)
    test = found["mcnemar"]["right or wrong"]
    assert test["only_first"] == (right[0] & ~right[1]).sum()
    assert test["only_second"] == (right[1] & ~right[0]).sum()
    delong = found["auroc"]["malignant"]
    assert delong["images"]["difference"] == pytest.approx(found["differences"]["auroc"]["value"])
    assert delong["clusters"]["standard_error"] != delong["images"]["standard_error"]


def test_a_model_against_itself():
    df, _ = pair()
    found = comparison.compare(df, df, n_resamples=50)
    assert all((f["value"], f["low"], f["high"]) == (0, 0, 0) for f in found["differences"].values())
    assert found["mcnemar"]["right or wrong"]["exact"] == 1


def test_only_common_images_are_compared_and_the_others_named():
    first, second = pair()
    found = comparison.compare(first.iloc[:200], second.iloc[40:], n_resamples=0)
    assert found["n_images"] == 160
    assert found["only_first"] == {"n_images": 40, "examples": [f"i{i:04d}" for i in range(5)]}
    assert found["only_second"]["examples"][0] == "i0200"


def test_several_classes_and_several_labels():
    first, second = class_table(k=3, seed=0), class_table(k=3, seed=1)
    found = comparison.compare(first, second, n_resamples=20)
    assert list(found["auroc"]) == ["c0", "c1", "c2"]

    rng = np.random.default_rng(0)
    labels = rng.random((80, 2)) < 0.5
    tables = [
        predictions.make_table(
            range(80), labels.astype(int), rng.random((80, 2)), ["tumor", "stroma"], split="test",
            patient_id=np.arange(80) % 8,
        )
        for _ in range(2)
    ]  # fmt: skip
    cuts = [{"tumor": 0.4, "stroma": 0.6}, {"tumor": 0.5, "stroma": 0.5}]
    found = comparison.compare(*tables, thresholds=cuts, n_resamples=20)
    whole = [results.summarise(df, n_resamples=0, thresholds=cut)["test"] for df, cut in zip(tables, cuts, strict=True)]
    of_tumor = [block["labels"]["tumor"]["f1"]["value"] for block in whole]
    assert found["differences"]["tumor: f1"]["value"] == pytest.approx(of_tumor[1] - of_tumor[0])
    assert list(found["mcnemar"]) == ["tumor", "stroma", "all labels of the image"]
    assert list(found["auroc"]) == ["tumor", "stroma"]


def test_a_probability_on_the_threshold_counts_as_present():
    first, second = (
        predictions.make_table(range(4), np.ones((4, 1), int), np.full((4, 1), p), ["tumor"], split="test")
        for p in (0.4, np.nextafter(0.4, 0))
    )
    found = comparison.compare(first, second, thresholds=[{"tumor": 0.4}] * 2, n_resamples=0)
    for question in ("tumor", "all labels of the image"):
        test = found["mcnemar"][question]
        assert (test["only_first"], test["only_second"]) == (4, 0)
    assert found["differences"]["accuracy"]["value"] == -1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda df: df.assign(image_id="x" + df["image_id"]), "no image_id is in both tables"),
        (lambda df: df.assign(label=df["label"].iloc[::-1].tolist()), "240 common images have different true labels"),
        (lambda df: df.assign(label=["malignant", *df["label"][1:]]), r"1 of 240 common images .*\(i0000\)"),
        (lambda df: df.rename(columns={"prob_benign": "prob_b"}), "only tables with the same classes"),
    ],
)
def test_tables_that_cannot_be_compared_are_refused(change, message):
    first, second = pair()
    with pytest.raises(RunError, match=message):
        comparison.compare(first, change(second))


def test_coverage_of_a_difference_over_patients():
    # 30 patients of six images. The accuracy of either model depends on the patient.
    x = (np.arange(100_000) + 0.5) / 100_000
    true_difference = 0.1 * float(
        (np.minimum(x, 1 - x) * 20 * x**3 * (1 - x)).mean()
    )  # 20 x³ (1 − x): density of Beta(4, 2)
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(30), 6)
    held, trials = 0, 120
    for trial in range(trials):
        base = rng.beta(4, 2, size=30)
        rates = base, np.clip(base + rng.choice([-0.2, 0.4], size=30) * np.minimum(base, 1 - base), 0, 1)
        tables = []
        for rate in rates:
            right = rng.random(180) < rate[patient]
            p = np.where(right, 0.8, 0.2)
            tables.append(
                predictions.make_table(
                    range(180), np.ones(180, int), np.stack([1 - p, p], 1), ["a", "b"], split="test",
                    patient_id=patient,
                )
            )  # fmt: skip
        figure = comparison.compare(*tables, n_resamples=150, seed=trial)["differences"]["accuracy"]
        held += figure["low"] <= true_difference <= figure["high"]
    assert 0.89 <= held / trials <= 0.985


def test_a_missing_p_value_has_its_reason():
    first, second = pair(n=40, n_patients=2)  # one patient of each class
    test = comparison.compare(first, second, positive="malignant", n_resamples=0)["auroc"]["malignant"]
    assert (test["images"]["p"] is not None, test["images"]["why_no_p"]) == (True, "")
    assert test["clusters"]["p"] is None
    one = "only one patient has images that are"
    assert test["clusters"]["why_no_p"] == f"{one} positive and {one} negative"
    rows = [table[:3].assign(patient_id="") for table in (first, second)]  # benign, malignant, benign
    test = comparison.compare(*rows, positive="malignant", n_resamples=0)["auroc"]["malignant"]
    assert (test["images"]["why_no_p"], test["clusters"]) == ("only one image is positive", None)
