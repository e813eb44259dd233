"""The table of legal values: complete, checked before data are opened, and as wide as the code allows."""

import itertools
import math
import pathlib
from typing import Any

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import dala_resnet50_breakhis
from data_pipelines.errors import DataError
from histojax.core import interval
from histojax.core.errors import RunError
from histojax.distributed.sharding import Layout
from histojax.training import build, default_config, experiments, loop
from histojax.training.monitoring import LAST
from histojax.training.optimizer import learning_rate, make_optimizer
from histojax.training.tasks import Multiclass, Multilabel
from tests.helpers import tiny_config

LEGAL = default_config.LEGAL_VALUES
INTERVALS = {field: text for field, text in LEGAL.items() if isinstance(text, str)}
CHOICES = {field: texts for field, texts in LEGAL.items() if isinstance(texts, tuple)}


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return found


BASE = leaves(default_config.base())


def with_value(field: str, value: object) -> ConfigDict:
    """Return the default config with one field of another value."""
    config = default_config.base()
    config.update_from_flattened_dict({field: value})
    return config


def is_float(field: str) -> bool:
    value = BASE[field]
    return isinstance((value or (0,))[0] if isinstance(value, tuple) else value, float)


def legal_numbers(field: str) -> st.SearchStrategy[Any]:
    left, low, high, right = interval.parse(INTERVALS[field])
    if is_float(field):
        bounds = {"exclude_min": left == "(", "exclude_max": right == ")" and high < math.inf}
        return st.floats(low, min(high, 1e9), **bounds, width=32, allow_subnormal=False)
    return st.integers(int(low), 10**6 if high == math.inf else int(high))


def illegal_numbers(field: str) -> st.SearchStrategy[Any]:
    left, low, high, right = interval.parse(INTERVALS[field])
    if not is_float(field):
        below = st.integers(max_value=int(low) - 1)
        return below if high == math.inf else below | st.integers(int(high) + 1)
    drawn = st.floats(max_value=low, exclude_max=left == "[") | st.just(math.nan)
    return drawn | st.floats(min_value=high, exclude_min=right == "]")


def test_every_number_has_an_interval_and_every_field_exists() -> None:
    assert LEGAL.keys() <= BASE.keys()
    assert default_config.MULTILABEL_VALUES.keys() <= CHOICES.keys()
    bare = [field for field, value in BASE.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    assert set(bare) <= INTERVALS.keys()


def test_defaults_are_legal_and_choices_are_those_of_the_tasks() -> None:
    default_config.check_values(default_config.base())
    assert CHOICES["train.best_metric"] == (*Multiclass.METRICS, LAST)
    assert default_config.MULTILABEL_VALUES["train.best_metric"] == (*Multilabel.METRICS, LAST)


@settings(max_examples=300)
@given(st.data())
def test_a_number_outside_its_interval_is_refused_and_named(data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(INTERVALS)))
    number = data.draw(illegal_numbers(field))
    value = (0.5, number, 0.5) if isinstance(BASE[field], tuple) else number
    with pytest.raises(RunError) as caught:
        default_config.check_values(with_value(field, value))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{field}={value} ")


@settings(max_examples=10)
@given(st.data())
def test_legal_values_build_everything_that_is_built_before_the_first_step(data: st.DataObject) -> None:
    config = default_config.base()
    config.data.task = data.draw(st.sampled_from(["binary", "multilabel"]))
    multilabel = config.data.task == "multilabel"
    choices = CHOICES | (default_config.MULTILABEL_VALUES if multilabel else {})
    drawn = {field: data.draw(st.sampled_from(texts)) for field, texts in choices.items()}
    for field in INTERVALS:
        number = legal_numbers(field)
        drawn[field] = data.draw(st.tuples(number, number, number) if isinstance(BASE[field], tuple) else number)
    drawn["loss.name"] = data.draw(st.sampled_from((Multilabel if multilabel else Multiclass).LOSSES))
    drawn["loss.class_weights" if multilabel else "loss.positive_weights"] = "none"
    layout = Layout(1)
    drawn["train.batch_size"] = layout.mesh.size * drawn["train.accumulate"] * data.draw(st.integers(1, 9))
    drawn["evaluation.batch_size"] = layout.mesh.size * data.draw(st.integers(1, 9))
    config.update_from_flattened_dict(drawn)
    default_config.check_values(config)

    build.augment_spec(config)
    build.loader_spec(config, layout, training=True)
    build.loader_spec(config, layout, training=False)
    build.task(config, ("a", "b"), (3, 4), 7)
    spec = build.optimizer(config, 5)
    assert optax.tree.norm(make_optimizer(spec).init({"head": {"kernel": np.zeros((1, 1))}})) >= 0
    first = learning_rate(spec)(0)
    assert 0 <= first < math.inf
    assert first > 0 or spec.learning_rate < 1e-30  # a fraction of the least float32 is 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("checkpoint.every_epochs", 0, "checkpoint.every_epochs=0 is not at least 1"),
        ("train.mixup", -0.5, "train.mixup=-0.5 is not at least 0"),
        ("optimizer.learning_rate", 0.0, "optimizer.learning_rate=0.0 is not above 0"),
        ("optimizer.learning_rate", math.nan, "optimizer.learning_rate=nan is not a finite number"),
        ("data.mean", (123.7, 116.3, 103.5), "is not in [0, 1]; it is for pixels in 0 … 1: divide by 255"),
        ("data.mean", (0.5,), "data.mean=(0.5,) is not 3 numbers, for red, green and blue"),
        ("data.std", ("a", "b", "c"), "data.std=('a', 'b', 'c') are not numbers"),
        ("optimizer.name", "adam", "'adam' is not one of adamw, sgd (did you mean 'adamw'?)"),
        ("train.best_metric", "mean_average_precision", "is not one of loss, accuracy, gmean, balanced_accuracy, f1"),
    ],
)
def test_messages(field: str, value: object, message: str) -> None:
    with pytest.raises(RunError) as caught:
        default_config.check_values(with_value(field, value))
    assert message in str(caught.value)


def test_all_problems_are_reported_together() -> None:
    config = with_value("train.epochs", 0)
    config.train.log_every = 0
    with pytest.raises(RunError, match=r"\Atrain\.epochs=0 .*\ntrain\.log_every=0 .*\Z"):
        default_config.check_values(config)


@pytest.mark.parametrize("variant", ["", "ldcsf"])
def test_training_checks_before_it_opens_the_data(variant: str, tmp_path: pathlib.Path) -> None:
    config = tiny_config.get_config(variant)
    config.data.root = str(tmp_path / "absent")
    config.checkpoint.keep = 0
    with pytest.raises(RunError, match=r"checkpoint\.keep=0"):
        loop.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.name": "resnet5"}, "did you mean 'resnet50'"),
        (
            {"loss.name": "focl"},
            r"loss\.name='focl' is not one of cross_entropy, focal \(did you mean 'focal'\?\); the fi",
        ),
        ({"loss.name": "asymmetric"}, r"loss\.name='asymmetric' is not one of cross_entropy, focal;"),
        ({"model.options": ConfigDict({"dept": 3})}, "dept"),
        ({"model.name": "resnet50"}, r"unknown option '.*' of resnet50.* add --config\.model\.options=\{\}, or use"),
        ({"model.options.depth": 0}, r"model\.options: depth=0 is not a positive number$"),
        ({"data.image_size": 33}, r"data\.image_size=33: "),
        ({"data.split.test_fraction": 0.0}, r"data\.split\.test_fraction=0\.0 is not in \(0, 1\)"),
    ],
)
def test_model_and_split_are_checked_before_the_data_are_opened(
    fields: dict[str, object], message: str, tmp_path: pathlib.Path
) -> None:
    config = tiny_config.get_config()
    config.data.root = str(tmp_path / "absent")
    for field, value in fields.items():
        config.update_from_flattened_dict({field: value})
    with pytest.raises((RunError, DataError), match=message):
        loop.train_and_evaluate(config, tmp_path / "run")


def test_only_smoke_runs_default_to_synthetic_images(tmp_path: pathlib.Path) -> None:
    both_ways = r"--config\.data\.root=PATH, or .*--config\.data\.synthetic=true"
    with pytest.raises(RunError, match=both_ways):
        loop.train_and_evaluate(dala_resnet50_breakhis.get_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for name in experiments.names():
        with pytest.raises(RunError, match=both_ways):
            default_config.check_data_root(experiments.read(name))
        default_config.check_data_root(experiments.read(f"{name}:smoke"))
        default_config.check_data_root(experiments.read(name, [("data.root", "images")]))
        default_config.check_data_root(experiments.read(name, [("data.synthetic", "true")]))


def test_shipped_experiments_are_legal() -> None:
    for variant, change in itertools.product(("", "smoke"), ({}, {"data.mpp": 0.5})):
        config = dala_resnet50_breakhis.get_config(variant)
        config.update_from_flattened_dict(change)
        default_config.check_values(config)
