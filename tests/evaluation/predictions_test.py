import numpy as np
import pandas as pd
import pytest

from histojax.evaluation import predictions
from histojax.evaluation.predictions import PredictionsError


def good(n=6, **columns):
    p = np.linspace(0.1, 0.8, n) / 3 + 1e-17
    table = {
        "image_id": [f"i{i}" for i in range(n)],
        "patient_id": ["007", "NA", "", "a,b", 'q"uote', "ünïcode"][:n],
        "magnification": ["40"] * n,
        "split": ["test"] * n,
        "label": ["benign", "malignant"] * (n // 2),
        "prob_benign": 1 - p,
        "prob_malignant": p,
    }
    return pd.DataFrame(table | columns)


def test_a_good_table_gives_its_classes_in_order():
    assert predictions.validate(good()) == ["benign", "malignant"]
    swapped = good()[["prob_malignant", *good().columns.drop("prob_malignant")]]
    assert predictions.validate(swapped) == ["malignant", "benign"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_spreadsheets_are_read(tmp_path, encoding, delimiter):
    table = good(patient_id=["007", "NA", "", "a,b;c", 'q"u\no\u2028te', "ünïcode"])
    written = table.astype(str)
    if delimiter == ";":
        for name in ("prob_benign", "prob_malignant"):
            written[name] = written[name].str.replace(".", ",")
    written.to_csv(tmp_path / "table.csv", index=False, sep=delimiter, encoding=encoding)
    pd.testing.assert_frame_equal(predictions.read(tmp_path / "table.csv"), predictions.normalise(table))


def test_a_name_with_any_line_break_survives_the_csv_file(tmp_path):
    table = predictions.normalise(good(image_id=["a\rb", "c\nd", "e\r\nf", "g\u2028h", "i,j", 'k"l']))
    predictions.write(table, tmp_path / "table")
    pd.testing.assert_frame_equal(predictions.read(tmp_path / "table.csv"), table)


BAD = {
    "missing column": (lambda t: t.drop(columns=["split", "label"]), "'split', 'label' missing.*6 rows.*add"),
    "no classes": (
        lambda t: t.drop(columns=["prob_benign"]),
        r"prob_<class>.*6 rows.*malignant.*two or more",
    ),
    "no rows": (lambda t: t.iloc[:0], "'image_id': 0 rows.*check"),
    "doubled column": (lambda t: pd.concat([t, t[["label"]]], axis=1), "'label' occurs twice.*6 rows.*drop"),
    "duplicate": (
        lambda t: t.assign(image_id=["x", "x", *"abcd"]),
        "'image_id': 2 of 6 rows share.*'x'.*keep",
    ),
    "empty id": (lambda t: t.assign(image_id=["", *"abcde"]), "'image_id': 1 of 6 rows are empty.*give"),
    "empty split": (lambda t: t.assign(split=["", *"abcde"]), "'split': 1 of 6 rows are empty.*name"),
    "label": (lambda t: t.assign(label=["Benign"] * 6), "'label': 6 of 6 rows are not one of.*'Benign'.*use"),
    "nan": (
        lambda t: t.assign(prob_benign=[np.nan] + [0.5] * 5),
        "'prob_benign': 1 of 6 rows are not a finite.*look",
    ),
    "text": (lambda t: t.assign(prob_benign=["much"] * 6), "'prob_benign': 6 of 6 rows are not a finite"),
    "above": (lambda t: t.assign(prob_benign=1.01), r"'prob_benign': 6 of 6 rows lie outside.*softmax"),
    "below": (lambda t: t.assign(prob_malignant=-0.01), "'prob_malignant': 6 of 6 rows lie outside"),
    "sum": (
        lambda t: t.assign(prob_benign=t.prob_benign - 0.0011),
        "prob_benign…prob_malignant.*6 of 6.*sum",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_refused_with_a_reason(name):
    spoil, message = BAD[name]
    with pytest.raises(PredictionsError, match=message):
        predictions.validate(spoil(good()))


def test_rounding_errors_are_accepted():
    table = good().assign(prob_benign=lambda t: t.prob_benign - 0.0009)
    assert predictions.validate(table)
    over = predictions.normalise(good().assign(prob_benign=1 + 5e-7, prob_malignant=0.0))
    assert over["prob_benign"].max() == 1.0


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ""])
def test_round_trip_is_exact(tmp_path, suffix):
    table = predictions.normalise(good(subtype=["DC"] * 6, case_id=["01"] * 6, fold=range(6)))
    written = predictions.write(table, tmp_path / "new" / "run.v1")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["run.v1.csv", "run.v1.parquet"]
    assert [p.suffix for p in written] == [".parquet", ".csv"]
    back = predictions.read(tmp_path / "new" / f"run.v1{suffix}")
    pd.testing.assert_frame_equal(back, table, check_exact=True)
    assert back["patient_id"].tolist() == ["007", "NA", "", "a,b", 'q"uote', "ünïcode"]


def test_a_foreign_table_becomes_text_and_float64():
    foreign = good(
        image_id=np.array([f"i{i}".encode() for i in range(6)], dtype=object),
        patient_id=[1.0, np.nan, 3.0, 4.0, 5.0, None],
        magnification=[40, 100, 200, 400, 40, 40],
        prob_benign=np.float32([0.9, 0.5, 0.25, 0.125, 1, 0]),
        prob_malignant=np.float32([0.1, 0.5, 0.75, 0.875, 0, 1]),
    )
    table = predictions.normalise(foreign)
    assert table["image_id"].tolist() == [f"i{i}" for i in range(6)]
    assert table["patient_id"].tolist() == ["1", "", "3", "4", "5", ""]
    assert table["magnification"].tolist() == ["40", "100", "200", "400", "40", "40"]
    assert table["prob_benign"].dtype == np.float64


def test_make_table():
    p = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    by_index = predictions.make_table(["a", "b"], np.array([0, 1]), p, ["neg", "pos"], split="val")
    by_name = predictions.make_table(["a", "b"], ["neg", "pos"], p, ["neg", "pos"], split=["val", "val"])
    pd.testing.assert_frame_equal(by_index, by_name)
    assert by_index.columns.tolist() == [*predictions.REQUIRED, "label", "prob_neg", "prob_pos"]
    assert by_index["patient_id"].tolist() == ["", ""]
    with pytest.raises(PredictionsError, match="shape"):
        predictions.make_table(["a", "b"], [0, 1], p, ["neg"], split="val")
    with pytest.raises(PredictionsError, match=r"1 of 2 rows are not an index.*padding"):
        predictions.make_table(["a", "b"], [0, -1], p, ["neg", "pos"], split="val")
    with pytest.raises(PredictionsError, match="'patient_id' has 1 rows, image_id has 2"):
        predictions.make_table(["a", "b"], [0, 1], p, ["neg", "pos"], split="val", patient_id=["x"])


def test_a_failed_write_leaves_both_old_files(tmp_path, monkeypatch):
    base = tmp_path / "predictions"
    predictions.write(good(), base)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(self, path, **_):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(OSError, match="disk full"):
        predictions.write(good(patient_id=["other"] * 6), base)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_file_is_validated_when_read(tmp_path):
    good().drop(columns="split").to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(PredictionsError, match="'split' missing"):
        predictions.read(tmp_path / "t.csv")
    good(prob_benign=["0.5", "much", "", "0.5", "0.5", "0.5"]).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(PredictionsError, match="'prob_benign': 2 of 6 rows are not a finite"):
        predictions.read(tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError):
        predictions.read(tmp_path / "nothing")
