"""Files of features: both forms give back what was written, with the same bytes each time, or say what is wrong."""

import dataclasses
import json
import pathlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from histojax.evaluation import feature_files
from histojax.evaluation.feature_files import FACTS, FeatureFileError, FeatureTable


def table(rows: int = 3, width: int = 4) -> FeatureTable:
    facts: dict[str, list[str | None]] = {"image_id": [f"benign/ä{i}.png" for i in range(rows)]}
    facts |= {name: [None] * rows for name in FACTS}
    facts["label"] = ["benign", "malignant", None][:rows]
    facts["patient_id"] = ["p0", "p0", "p1"][:rows]
    features = np.arange(rows * width, dtype=np.float32).reshape(rows, width) / 7
    return FeatureTable(pd.DataFrame(facts, dtype=object), features, {"model": "resnet50", "image_size": 224})


@pytest.mark.parametrize("suffix", feature_files.SUFFIXES)
@pytest.mark.parametrize("rows", [0, 3])
def test_a_file_gives_back_what_was_written(tmp_path: pathlib.Path, suffix: str, rows: int, monkeypatch) -> None:
    monkeypatch.setattr(feature_files, "_BLOCK_ROWS", 2)
    written, path = table(rows), tmp_path / f"f{suffix}"
    feature_files.write(path, written)
    read = feature_files.read(path)
    pd.testing.assert_frame_equal(read.facts, written.facts)
    np.testing.assert_array_equal(read.features, written.features)
    assert read.features.dtype == np.float32
    assert read.metadata == written.metadata
    first = path.read_bytes()
    feature_files.write(path, written)
    assert path.read_bytes() == first


def test_the_forms_are_those_of_the_contract(tmp_path: pathlib.Path) -> None:
    feature_files.write(tmp_path / "f.parquet", table())
    stored = pq.read_table(tmp_path / "f.parquet")
    assert stored.column_names == ["image_id", "label", "patient_id", "case_id", "slide_id", "split", "features"]
    assert stored.schema.field("features").type == pa.list_(pa.float32(), 4)
    assert stored.column("case_id").null_count == 3
    assert json.loads(stored.schema.metadata[b"histojax"])["model"] == "resnet50"
    feature_files.write(tmp_path / "f.npz", table())
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["features"].shape == (3, 4)
        assert arrays["label"].tolist() == ["benign", "malignant", ""]
        assert json.loads(str(arrays["metadata"]))["image_size"] == 224


def test_lists_of_another_program_are_read(tmp_path: pathlib.Path) -> None:
    pd.DataFrame({"image_id": ["a", "b"], "features": [[1.0, 2.0], [3.0, 4.0]]}).to_parquet(tmp_path / "f.parquet")
    read = feature_files.read(tmp_path / "f.parquet")
    assert read.features.tolist() == [[1, 2], [3, 4]]
    assert read.facts["label"].tolist() == [None, None]
    pd.DataFrame({"image_id": ["a", "b"], "features": [[1.0], [3.0, 4.0]]}).to_parquet(tmp_path / "f.parquet")
    with pytest.raises(FeatureFileError, match=r"f\.parquet: the rows of `features` differ in length"):
        feature_files.read(tmp_path / "f.parquet")


@pytest.mark.parametrize("suffix", feature_files.SUFFIXES)
def test_bad_files_are_named(tmp_path: pathlib.Path, suffix: str) -> None:
    path = tmp_path / f"f{suffix}"
    with pytest.raises(FeatureFileError, match="does not exist"):
        feature_files.read(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(FeatureFileError, match=f"f{suffix}: cannot be read as features"):
        feature_files.read(path)
    broken = table()
    broken.features[1, 2] = np.nan
    feature_files.write(path, broken)
    with pytest.raises(FeatureFileError, match=r"features of benign/ä1\.png are NaN or infinite"):
        feature_files.read(path)
    twice = table()
    feature_files.write(path, dataclasses.replace(twice, facts=twice.facts.assign(image_id=["a", "b", "a"])))
    with pytest.raises(FeatureFileError, match="image_id 'a' is missing or has several rows"):
        feature_files.read(path)


def test_other_suffixes_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FeatureFileError, match=r"--output=\S+f.csv is not a file name that ends in .parquet or .npz"):
        feature_files.check_path(tmp_path / "f.csv", "--output")
