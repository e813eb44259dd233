"""The robustness index equals croma's, and is 1 or 0 where features follow the class or the confounder alone."""

import pathlib

import numpy as np
import pandas as pd
import pytest
from croma import RI

from histojax.core.errors import RunError
from histojax.evaluation import feature_files
from histojax.evaluation.feature_files import FeatureTable
from histojax.studies.robustness import features, index


def planted(n: int = 90, of_class: float = 1.0, of_source: float = 0.7, seed: int = 0) -> dict[str, np.ndarray]:
    """Features of three classes and two sources, whose groups have three images each."""
    rng = np.random.default_rng(seed)
    label, source = np.arange(n) % 3, np.arange(n) // 3 % 2
    means, shift = rng.normal(size=(3, 6)), rng.normal(size=(2, 6))
    x = of_class * means[label] + of_source * shift[source] + 0.8 * rng.normal(size=(n, 6))
    return {
        "features": x.astype(np.float32),
        "labels": np.array(["benign", "tumor", "stroma"])[label],
        "confounder": np.array(["here", "there"])[source],
        "groups": np.char.add("p", (np.arange(n) // 3).astype(str)),
    }


@pytest.mark.filterwarnings("ignore:.*RI/MaRI:RuntimeWarning")
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_croma(seed: int) -> None:
    data = planted(seed=seed)
    ids = [f"i{i}" for i in range(len(data["labels"]))]
    manifest = pd.DataFrame(
        {"sample_id": ids, "image_path": ids, "label": data["labels"], "site": data["confounder"]}
        | {"group_id": data["groups"]}
    )
    ks = (1, 3, 5, 10, 20)
    theirs = RI.compute(data["features"], manifest, confounder_column="site", k_candidates=ks)
    ours = index.robustness_index(**data, k_values=ks, n_resamples=0)
    assert ours.k == theirs.k
    assert ours.index["value"] == pytest.approx(theirs.value, abs=1e-12)
    assert ours.support == pytest.approx(theirs.support, abs=1e-12)
    curve = RI.compute_curve(data["features"], manifest, confounder_column="site", k_values=ks)
    assert ours.by_k == pytest.approx(curve, abs=1e-12)


def test_extremes() -> None:
    by_class = index.robustness_index(**planted(of_class=50, of_source=0), k_values=[5])
    assert by_class.index["value"] == 1
    assert by_class.knn_balanced_accuracy == 1
    by_source = index.robustness_index(**planted(of_class=0, of_source=500), k_values=[5], n_resamples=50)
    assert by_source.index["value"] == 0
    assert by_source.index["low"] == by_source.index["high"] == 0
    assert by_source.same_same + by_source.other_other < 1


def test_no_neighbour_that_counts_is_no_index() -> None:
    """Class and confounder are the same thing: no neighbour speaks for one against the other."""
    data = planted(of_class=50)
    data["confounder"] = data["labels"]
    found = index.robustness_index(**data, k_values=[5])
    assert (found.index["value"], found.support, found.by_k) == (None, 0.0, {5: None})


def test_images_of_a_group_are_not_compared() -> None:
    data = planted(of_class=0, of_source=0)
    base = np.random.default_rng(1).normal(size=(30, 6))
    data["features"] = np.repeat(base, 3, axis=0)  # a group's images are one picture
    together = index.robustness_index(**data, k_values=[2])
    data["groups"] = np.arange(90).astype(str)
    apart = index.robustness_index(**data, k_values=[2])
    assert apart.index["value"] == 0  # the neighbours are the group's other images: other class, same source
    assert together.index["value"] is not None
    assert together.index["value"] > 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a"] * 90}, "the same label"),
        ({"confounder": ["a"] * 90}, "the same confounder"),
        ({"groups": ["a"] * 90}, "the same group"),
        ({"labels": ["a", "b"]}, "90 rows of features, 2 labels"),
        ({"k_values": [90]}, "no k of 90 is above 0 and below the 90 images"),
    ],
)
def test_what_has_no_index_is_refused(change: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index.robustness_index(**(planted() | change))


def write(path: pathlib.Path) -> dict[str, np.ndarray]:
    data = planted()
    columns = {"image_id": [f"x/SOB_B_A-14-{i:05}-{40 if i % 2 else 100}-001.png" for i in range(90)]}
    facts = pd.DataFrame(columns | {"label": data["labels"], "patient_id": data["groups"]}, dtype=object)
    feature_files.write(path, FeatureTable(facts, data["features"], {"model": "m", "layer": "pooled"}))
    return data


def test_files_of_features(tmp_path: pathlib.Path) -> None:
    data = write(tmp_path / "a.parquet")
    by_name = features.indices([tmp_path / "a.parquet"], label="label", confounder="magnification", resamples=20)
    assert by_name["rows"][0]["group"] == "patient"
    assert by_name["rows"][0]["n_images"] == 90
    names = pd.read_parquet(tmp_path / "a.parquet")["image_id"]
    table = pd.DataFrame({"image_id": names, "site": data["confounder"]})
    table.loc[:2, "site"] = ""
    table.to_csv(tmp_path / "sites.csv", index=False)
    found = features.indices(
        [tmp_path / "a.parquet"], label="label", confounder="site", table=tmp_path / "sites.csv", resamples=20
    )
    (row,) = found["rows"]
    assert (row["n_images"], row["left_out"], row["n_groups"]) == (87, 3, 29)
    kept = {key: values[3:] for key, values in data.items()}
    assert row["index"] == index.robustness_index(**kept, n_resamples=20).index
    text = features.text(found)
    assert f"{row['index']['value']:.3f}" in text
    assert "3 images without label or site are left out" in text
    with pytest.raises(RunError, match=r"a\.parquet: no column site; name a table with image_id and site by --table"):
        features.indices([tmp_path / "a.parquet"], label="label", confounder="site")
