"""The base installation runs everything but the extras; without an extra, a command says how to install it."""

import importlib.metadata
import importlib.util
import pathlib
import re
import sys
import tomllib
from collections.abc import Iterable

import pytest

from histojax.cli.main import main
from histojax.core import extras
from histojax.core.errors import RunError
from histojax.training import experiments, loop, trainer
from tests.conftest import ROOT
from tests.helpers.source_files import FILES, imports

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Where the packages of an extra may be imported; everything else runs in the base installation.
FEATURES = {
    "slides": ("histojax/slides/", "histojax/cli/slide", "histojax/inference/embed/slide_features.py"),
    "export": ("histojax/inference/export/", "histojax/weights/onnx_file.py"),
    "torchscript": ("histojax/inference/export/torch",),
    "hub": ("histojax/weights/hub.py",),
    "mlflow": ("histojax/training/trackers.py",),
    "wandb": ("histojax/training/trackers.py",),
    "probe": ("histojax/studies/probe/", "histojax/evaluation/colour/", "histojax/cli/probe.py"),
}


def names(requirements: Iterable[str]) -> set[str]:
    """The distributions that requirements name, spelled alike."""
    return {re.match(r"[\w.-]+", one)[0].lower().replace("_", "-").replace(".", "-") for one in requirements}  # type: ignore[index]


BASE = names(PROJECT["dependencies"])
EXTRA = {extra: names(PROJECT["optional-dependencies"][extra]) for extra in extras.MODULES}
OWNERS = {module: names(owners) for module, owners in importlib.metadata.packages_distributions().items()}


def test_every_imported_package_is_installed_with_its_feature() -> None:
    for path in FILES:
        place = path.relative_to(ROOT).as_posix()
        carried = BASE.union(*(EXTRA[extra] for extra, places in FEATURES.items() if place.startswith(places)))
        for top in {name.partition(".")[0] for name in imports(path)} - {"histojax", "data_pipelines", "configs"}:
            assert top in sys.stdlib_module_names or OWNERS.get(top, names([top])) & carried, (
                f"{place} imports {top}, which neither the base installation nor the extra of its place carries"
            )


def test_the_modules_of_an_extra_are_those_that_it_installs() -> None:
    binaries = {"openslide-bin"}  # the library behind openslide-python, no module of its own
    for extra, modules in extras.MODULES.items():
        owners = set().union(*(OWNERS.get(module, names([module])) for module in modules))
        assert owners == EXTRA[extra] - binaries


def test_every_extra_that_a_text_names_exists() -> None:
    texts = [*FILES, *(ROOT / "histojax").rglob("*.jinja"), ROOT / "README.md", ROOT / ".ci" / "run"]
    texts += (ROOT / "docs").rglob("*.md")
    for path in texts:
        for extra in re.findall(r"(?:histojax|'\.|\")\[([a-z,]+)\]", path.read_text()):
            assert set(extra.split(",")) <= set(PROJECT["optional-dependencies"]), f"{path.name} names [{extra}]"


def hide(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that a module is not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == module else find_spec(name, *rest)
    )


@pytest.mark.parametrize(
    ("module", "extra", "command"),
    [
        ("shapely", "slides", "slide RUN SLIDE --output out"),
        ("shapely", "slides", "slide agreement RUN --output out"),
        ("tifffile", "slides", "slide train-tiles SLIDE --output out --labels a --tile_mpp 1"),
        ("jax2onnx", "export", "export RUN --to onnx --output out"),
        ("flatbuffers", "export", "export RUN --to stablehlo --output out"),
        ("skimage", "probe", "probe features.parquet"),
        ("huggingface_hub", "hub", "convert --weights hf:a/b --model resnet50 --output out"),
    ],
)
def test_a_missing_extra_is_reported_before_any_work(
    module: str, extra: str, command: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hide(module, monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    assert module in str(stopped.value)
    assert str(stopped.value).endswith(f"pip install 'histojax[{extra}]'")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "message"),
    [("hf:a/b", r"pip install 'histojax\[hub\]'"), ("none.pth", "no such file"), ("hf:a", "is not")],
)
def test_weights_that_cannot_be_located_stop_a_run_before_the_data_are_opened(
    source: str, message: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide("huggingface_hub", monkeypatch)
    monkeypatch.setattr(trainer, "open_dataset", lambda *_: pytest.fail("the data were opened"))
    config = experiments.read("dala_resnet50_breakhis:smoke", [("model.pretrained", source)])
    with pytest.raises(RunError, match=message):
        loop.train_and_evaluate(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())
