"""A loss, an augmentation and a metric from outside the package: the page's example, word for word."""

import importlib
import json
import pathlib
import re
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.synthetic.generator import SyntheticSpec, generate
from histojax.core import plugins
from histojax.core.errors import RunError
from histojax.evaluation import own_metrics, predictions
from histojax.training import augmentations, checkpoint, loop, losses
from histojax.training.tasks import Multiclass, Multilabel
from histojax.training.trainer import open_trainer
from tests.conftest import ROOT
from tests.helpers import tiny_config
from tests.helpers.command import histojax

MODULE = "my_lab"
PAGE = (ROOT / "docs/how-to/extend.md").read_text(encoding="utf-8")
EXAMPLE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
REGISTRIES = (losses.REGISTRY, augmentations.REGISTRY, own_metrics.REGISTRY)
PLUGINS = ("tests.helpers.mini_model", MODULE)
NAMES = {"loss.name": "poly1", "train.augmentations": ("erase",), "evaluation.metrics": ("all_correct",)}


def forget() -> None:
    """As in a new process: the module and what it registered are not known."""
    sys.modules.pop(MODULE, None)
    for registry in REGISTRIES:
        registry.items.clear()


@pytest.fixture(autouse=True)
def module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """The user's module on the path, not imported yet."""
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "items", {})
    path = tmp_path / "code" / f"{MODULE}.py"
    path.parent.mkdir()
    path.write_text(EXAMPLE)
    monkeypatch.syspath_prepend(path.parent)
    importlib.invalidate_caches()
    yield path
    forget()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    spec = SyntheticSpec(cases_per_subtype=(2, 2, 2, 2, 3, 2, 2, 2), images_per_patient=2, magnifications=("100X",))
    return generate(tmp_path_factory.mktemp("extend") / "images", spec)


def config_of(images: pathlib.Path, **fields: object) -> ConfigDict:
    config = tiny_config.get_config("mini")
    config.data.root, config.train.epochs, config.plugins = str(images), 1, PLUGINS
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def words(fields: dict[str, object]) -> list[str]:
    return [f"--config.{name}={value}" for name, value in fields.items()]


def test_the_example_trains_resumes_evaluates_and_reports(images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    fields = {"data.root": images, "plugins": PLUGINS, **NAMES, "optimizer.schedule": "constant"}
    command = ["train", "--config", ROOT / "tests/helpers/tiny_config.py:mini", "--workdir", run, *words(fields)]
    done = histojax(*command, "--config.train.epochs=1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  all correct +0\.\d+ +\[0\.\d+, [01]\.\d+\]$", done.stdout, re.MULTILINE)
    assert checkpoint.read_meta(checkpoint.find(run))["config"]["plugins"] == list(PLUGINS)

    forget()
    done = histojax(*command, "--config.train.epochs=2")
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stderr
    found = json.loads((run / "results.json").read_text())
    assert found["own_metrics"] == {"all_correct": f"{MODULE}.all_correct"}
    figure = found["splits"]["test"]["image"]["all_correct"]
    table = predictions.read(run / "predictions")
    table = table[table["split"] == "test"]
    right = (table["prob_malignant"] > 0.5) == (table["label"] == "malignant")
    assert figure["value"] == pytest.approx(right.groupby(table["patient_id"]).all().mean())
    assert figure["low"] < figure["value"] < figure["high"]
    assert "all correct" in (run / "results.txt").read_text()

    forget()
    done = histojax("eval", "--checkpoint", run, "--workdir", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["splits"]["test"]["image"]["all_correct"] == figure

    forget()  # a report copies the figure, and imports nothing
    done = histojax("report", run, "--output", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert MODULE not in sys.modules
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["sources"][0]["levels"]["image"]["figures"]["all_correct"] == figure
    assert f"all correct is a metric of the run's own, {MODULE}.all_correct" in report["sources"][0]["notes"][0]
    assert "All correct</th>" in (tmp_path / "report" / "report.html").read_text()
    assert "all_correct" in (tmp_path / "report" / "metrics.csv").read_text()
    assert "| all correct |" in (tmp_path / "report" / "MODEL_CARD.md").read_text()


def test_a_metric_is_added_to_a_finished_run(images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert loop.train_and_evaluate(config_of(images, plugins=PLUGINS[:1]), tmp_path / "run")
    assert "own_metrics" not in json.loads((tmp_path / "run" / "results.json").read_text())
    added = words({"plugins": PLUGINS, "evaluation.metrics": "all_correct"})
    done = histojax("eval", "--checkpoint", tmp_path / "run", "--workdir", tmp_path / "more", *added)
    assert done.returncode == 0, done.stderr
    assert "all correct" in done.stdout


def test_a_module_that_is_missing_is_named(images: pathlib.Path, tmp_path: pathlib.Path, module: pathlib.Path) -> None:
    assert loop.train_and_evaluate(config_of(images, loss__name="poly1"), tmp_path / "run")
    forget()
    module.unlink()
    importlib.invalidate_caches()
    for command in (
        ("eval", "--checkpoint", tmp_path / "run"),
        ("predict", tmp_path / "run", images, "--output", "x.csv"),
    ):
        done = histojax(*command)
        assert done.returncode == 1
        assert f"plugins: '{MODULE}' cannot be imported" in done.stderr
    with pytest.raises(RunError, match=r"plugins: 'my_lab' cannot be imported .* add its folder to PYTHONPATH"):
        loop.train_and_evaluate(config_of(images, loss__name="poly1"), tmp_path / "run")


def first_step(config: ConfigDict) -> tuple[float, list[np.ndarray]]:
    """Loss and parameters of a run after its first step."""
    trainer = open_trainer(config)
    state, metrics = trainer.program.train(trainer.init(), next(trainer.epoch(0)))
    return float(metrics["loss"]), [np.asarray(leaf) for leaf in jax.tree.leaves(state.model.params)]


def test_loss_and_augmentation_change_what_is_learned(images: pathlib.Path) -> None:
    plain_loss, plain = first_step(config_of(images))
    own_loss, own = first_step(config_of(images, loss__name="poly1"))
    assert plain_loss + 0.1 < own_loss < plain_loss + 1  # more by what the probability of the true class lacks
    assert any((a != b).any() for a, b in zip(plain, own, strict=True))
    _, augmented = first_step(config_of(images, train__augmentations=("erase",)))
    assert any((a != b).any() for a, b in zip(plain, augmented, strict=True))
    again = first_step(config_of(images, train__augmentations=("erase",)))[1]
    assert all((a == b).all() for a, b in zip(augmented, again, strict=True))


def test_an_augmentation_sees_pixels_in_0_to_1_and_keys_of_its_own() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    seen: dict[str, tuple[np.ndarray, jax.Array]] = {}

    def note(name: str, change: float):
        def function(pixels: jax.Array, key: jax.Array) -> jax.Array:
            seen[name] = np.asarray(pixels), key
            return pixels + change

        return augmentations.register(augmentations.Augmentation(name, function))

    note("brighter", 0.5), note("same", 0.0)
    key = jax.random.key(3)
    changed = np.asarray(augmentations.augment(images, key, ("brighter", "same")))
    np.testing.assert_array_equal(seen["brighter"][0], images.astype(np.float32) / 255)
    np.testing.assert_allclose(seen["same"][0], np.minimum(images / 255 + 0.5, 1), rtol=1e-6)
    np.testing.assert_allclose(changed, np.minimum(images + 127.5, 255), rtol=1e-6)
    keys = [jax.random.key_data(key).tolist() for key in (key, seen["brighter"][1], seen["same"][1])]
    assert len(set(map(tuple, keys))) == 3
    augmentations.augment(images, key, ("same",))
    assert jax.random.key_data(seen["same"][1]).tolist() == keys[2]  # whatever stands beside it
    assert augmentations.augment(images, key, ()) is images


BROKEN = """
import jax.numpy as jnp
from histojax.evaluation import own_metrics
from histojax.training import augmentations, losses

def fails(*args):
    raise KeyError("no such stain")

for name, function in {
    "fails": fails,
    "none": lambda *args: None,
    "per_class": lambda logits, targets, weights: logits,
    "mean": lambda logits, targets, weights: logits.mean(),
    "whole": lambda logits, targets, weights: jnp.zeros(len(logits), int),
}.items():
    losses.register(losses.Loss(name, function))
for name, function in {
    "fails": fails,
    "cropped": lambda images, key: images[:, 1:],
    "bytes": lambda images, key: images.astype(jnp.uint8),
}.items():
    augmentations.register(augmentations.Augmentation(name, function))
for name, function in {
    "fails": fails,
    "several": lambda truth, probabilities, groups: probabilities.mean(0),
}.items():
    own_metrics.register(own_metrics.Metric(name, function))
"""


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("loss__name", "poly", r"loss\.name='poly' is not one of cross_entropy, focal, .*whole;.*`plugins`"),
        ("loss__name", "fails", r"loss\.name=fails: my_lab\.fails failed: .*my_lab\.py:7: KeyError: 'no such stain'"),
        (
            "loss__name",
            "none",
            r"loss\.name=none: my_lab\.<lambda> returned NoneType for logits \[3, 2\]; it must return ",
        ),
        ("loss__name", "per_class", r"returned float32 \[3, 2\] .* one loss per image, float32 \[3\]"),
        ("loss__name", "mean", r"returned float32 \[\] for logits"),
        ("loss__name", "whole", r"returned int32 \[3\] for logits"),
        (
            "train__augmentations",
            ("crop",),
            r"train\.augmentations: unknown augmentation 'crop' \(did you mean 'cropped'",
        ),
        (
            "train__augmentations",
            ("fails",),
            r"train\.augmentations: fails: my_lab\.fails failed: .*my_lab\.py:7: KeyError",
        ),
        ("train__augmentations", ("cropped",), r"cropped: my_lab\.<lambda> returned float32 \[8, 31, 32, 3\]; it must"),
        ("train__augmentations", ("bytes",), r"returned uint8 \[8, 32, 32, 3\]; .* float32 \[8, 32, 32, 3\]"),
        (
            "evaluation__metrics",
            ("sevral",),
            r"evaluation\.metrics: unknown metric 'sevral' \(did you mean 'several'\?\)",
        ),
        (
            "evaluation__metrics",
            ("fails",),
            r"evaluation\.metrics: fails: my_lab\.fails failed: .*my_lab\.py:7: KeyError",
        ),
        (
            "evaluation__metrics",
            ("several",),
            r"metrics: several: my_lab\.<lambda> returned float64 \[2\]; it must return",
        ),
    ],
)
def test_what_is_refused_before_the_first_step(
    field: str, value: object, message: str, images: pathlib.Path, tmp_path: pathlib.Path, module: pathlib.Path
) -> None:
    module.write_text(BROKEN)
    with pytest.raises(RunError, match=message):
        loop.train_and_evaluate(config_of(images, **{field: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_names_are_checked_before_the_data_are_opened(tmp_path: pathlib.Path) -> None:
    for field, value in {"loss__name": "x", "train__augmentations": ("x",), "evaluation__metrics": ("x",)}.items():
        with pytest.raises(RunError, match="'x'"):
            loop.train_and_evaluate(config_of(tmp_path / "absent", **{field: value}), tmp_path / "run")


def test_a_loss_for_several_labels_says_so() -> None:
    losses.register(losses.Loss("one", losses.cross_entropy))
    losses.register(losses.Loss("any", losses.asymmetric, several_labels=True))
    rows = jax.random.normal(jax.random.key(0), (2, 3, 2))
    for name, task in (
        ("any", Multilabel(("a", "b"), (2.0, 1.0), "any")),
        ("one", Multiclass(("a", "b"), (2.0, 1.0), "one")),
    ):
        ours = type(task)(("a", "b"), (2.0, 1.0))
        arguments = rows[0], abs(rows[1]), jnp.array([True, True, False])
        assert task.loss_sum(*arguments) == ours.loss_sum(*arguments), name
    with pytest.raises(
        ValueError, match="'one' is not one of cross_entropy, focal, asymmetric, any; one is for one class"
    ):
        Multilabel(("a", "b"), (1.0, 1.0), "one")


def test_our_names_are_taken() -> None:
    for name in {*Multiclass.LOSSES, *Multilabel.LOSSES}:
        with pytest.raises(ValueError, match="already registered"):
            losses.register(losses.Loss(name, losses.cross_entropy))


def test_a_run_resumes_with_other_plugins_but_not_with_another_loss(
    images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "code" / "renamed.py").write_text("from my_lab import *\n")
    assert loop.train_and_evaluate(config_of(images, loss__name="poly1"), tmp_path / "run")
    renamed = config_of(images, loss__name="poly1", plugins=(*PLUGINS[:1], "renamed"))
    assert loop.train_and_evaluate(renamed, tmp_path / "run")
    sys.modules.pop("renamed")
    with pytest.raises(RunError, match=r"loss\.name: saved 'poly1', now 'focal'"):
        loop.train_and_evaluate(config_of(images, loss__name="focal"), tmp_path / "run")


def test_the_entry_point_of_the_page_refers_to_the_loss() -> None:
    (target,) = re.findall(r'poly1 = "my_lab:(\w+)"', PAGE)
    plugins.load([MODULE])
    assert getattr(sys.modules[MODULE], target) is losses.REGISTRY.find("poly1")
