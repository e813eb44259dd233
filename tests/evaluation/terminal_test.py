"""The ten lines that a run prints at its end."""

import re

import numpy as np

from histojax.evaluation import predictions, results, terminal
from tests.helpers.prediction_tables import class_table, labels_table

HEAD = {"data": {"description": "SYNTHETIC images"}, "protocol": "case-disjoint", "model": "resnet50"}


def row(text: str, name: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"  {name}  ")]
    return line


def test_the_headline_of_two_classes() -> None:
    block = results.summarise(class_table(), n_resamples=50)["test"]
    text = terminal.headline(HEAD | {"splits": {"test": block}})
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["data", "protocol", "model"]
    assert text.count("SYNTHETIC") == 1
    assert lines[3].startswith(f"test: {block['n_images']} images, {block['n_patients']} patients")
    assert lines[3].endswith("95 % intervals over patients")
    accuracy, baseline = block["image"]["accuracy"], block["majority_baseline"]
    assert row(text, "accuracy").split(maxsplit=1)[1] == (
        f"{accuracy['value']:.4f}  [{accuracy['low']:.4f}, {accuracy['high']:.4f}]  "
        f"always '{baseline['class']}': {baseline['accuracy']:.4f}"
    )
    for name, key in (
        ("balanced accuracy", "balanced_accuracy"),
        ("GMean", "gmean"),
        ("IBA", "iba"),
        ("AUROC", "auroc"),
    ):
        assert f"{block['image'][key]['value']:.4f}" in row(text, name)
    assert f"{block['patient']['recognition_rate']['value']:.4f}" in row(text, "patient recognition rate")
    assert len(lines) <= 12
    assert "brier" not in text


def test_the_headline_of_several_labels_has_each_beside_its_baseline_and_the_reported_one() -> None:
    table = labels_table()
    block = results.summarise(table[table["split"] == "test"], n_resamples=50)["test"]
    reported = {"source": "a paper, protocol not stated", "label_accuracy": {"tumor": 0.9847}}
    text = terminal.headline(HEAD | {"reported": reported, "splits": {"test": block}})
    for name, label in block["labels"].items():
        line = row(text, f"{name} accuracy")
        assert f"always {label['baseline']['answer']}: {label['baseline']['accuracy']:.4f}" in line
        assert ("reported: 0.9847" in line) == (name == "tumor")
    assert "reported by a paper, protocol not stated" in text.splitlines()
    assert row(text, "mean average precision")


def test_without_a_test_split_or_intervals() -> None:
    p = np.array([0.1, 0.6, 0.7, 0.9])
    table = predictions.make_table(
        list("abcd"), [0, 0, 1, 1], np.stack([1 - p, p], 1), ("benign", "malignant"), split="val"
    )
    block = results.summarise(table, n_resamples=0)["val"]
    text = terminal.headline({"splits": {"val": block}})
    assert text.startswith("val: 4 images")
    assert re.search(r"^  accuracy +0\.7500  always '", text, re.MULTILINE)
    assert f"{len(block['warnings'])} warning" in text.splitlines()[-1]
