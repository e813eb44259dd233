"""Imports go one way: core <- storage <- {data_pipelines, models, weights, distributed, evaluation} <- {data, slides}
<- training <- inference <- studies <- cli. Read from the import statements of every module, without exemption."""

import importlib
import pathlib
import pkgutil
import sys

import pytest

from tests.conftest import ROOT
from tests.helpers.source_files import FILES, imports, module_of

# Floors, lowest first. A room may import the rooms of the floors below its own, and itself.
FLOORS: list[set[str]] = [
    {"core"},
    {"storage"},
    {"data_pipelines", "models", "weights", "distributed", "evaluation"},
    {"data", "slides"},
    {"training"},
    {"inference"},
    {"studies"},
    {"cli"},
]
# Exceptions within a floor, each with its reason.
_BESIDE = {("weights", "models")}  # the naming tables hang on each model's specification
# Experiments state fields and numbers; the doors start the command.
_CONFIGS, _DOORS = "configs", ("histojax", "histojax.__main__", "histojax.main")

# Third-party packages by room: what an installation of that room alone would need.
_ARRAYS = {"numpy"}
_TABLES = _ARRAYS | {"pandas", "pyarrow"}
_PIXELS = _ARRAYS | {"cv2", "PIL", "imagecodecs"}
_JAX = _ARRAYS | {"jax", "flax", "ml_collections"}
THIRD_PARTY: dict[str, set[str]] = {
    "core": set(),
    "storage": {"tensorstore"},
    "data_pipelines": _PIXELS | {"pyarrow", "tensorflow_datasets"},
    "models": _JAX - {"ml_collections"} | {"jaxtyping"},
    "weights": _ARRAYS | {"huggingface_hub", "ml_dtypes", "onnx", "safetensors"},
    "distributed": {"jax", "numpy"},
    "evaluation": _TABLES | {"cv2", "jaxtyping", "jinja2", "matplotlib", "scipy", "skimage", "sklearn", "yaml"},
    "data": _PIXELS | {"grain", "absl"},
    "slides": _TABLES | _PIXELS | {"jinja2", "matplotlib", "openslide", "scipy", "shapely", "tifffile", "tqdm"},
    "training": _JAX
    | _TABLES
    | {"jaxtyping", "optax", "orbax", "etils", "tensorstore", "tensorboardX", "tqdm", "absl"}
    | {"safetensors", "ml_dtypes", "huggingface_hub", "mlflow", "wandb"},
    "inference": _JAX
    | _TABLES
    | _PIXELS
    | {"tqdm", "safetensors", "matplotlib", "contourpy", "h5py"}
    | {"jax2onnx", "onnx", "onnxruntime", "torch"},
    "studies": _JAX | _TABLES | {"PIL", "cv2", "optax", "sklearn", "tqdm"},
    "cli": _JAX | _TABLES | {"absl", "cv2", "openslide", "packaging", "tqdm"},
}


def room_of(module: str) -> str:
    """The room of a module; fails for one that lies in no room."""
    if module in _DOORS:
        return "cli"
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0] if package == "histojax" else package
    assert room == _CONFIGS or room in set().union(*FLOORS), f"{module} lies in no room of the layout"
    return room


def floor_of(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def may_import(room: str, other: str) -> bool:
    if room == _CONFIGS:
        return other in (_CONFIGS, "training")  # only its default_config, which another test holds
    if other == _CONFIGS:
        return False
    return room == other or floor_of(other) < floor_of(room) or (room, other) in _BESIDE


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_module_imports_only_what_its_room_may(path: pathlib.Path) -> None:
    room = room_of(module_of(path))
    for name in imports(path):
        top = name.partition(".")[0]
        if top in ("histojax", "data_pipelines", "configs"):
            if name in ("histojax", "histojax.__version__"):
                continue  # the version
            assert may_import(room, room_of(name)), f"{module_of(path)} ({room}) must not import {name}"
        elif top not in sys.stdlib_module_names and room != _CONFIGS:
            assert top in THIRD_PARTY[room], f"{module_of(path)} ({room}) must not import {top}"


def test_the_package_root_holds_doors_only() -> None:
    inside = {p.name for p in (ROOT / "histojax").iterdir() if p.is_file()}
    assert inside == {"__init__.py", "__main__.py", "main.py", "py.typed"}


def test_a_module_in_no_room_is_refused() -> None:
    with pytest.raises(AssertionError, match="no room"):
        room_of("histojax.utils")
    with pytest.raises(AssertionError, match="no room"):
        room_of("histojax.stray.module")


def test_an_experiment_imports_the_default_config_only() -> None:
    for path in (ROOT / "configs").glob("*.py"):
        ours = {name for name in imports(path) if name.startswith(("histojax", "data_pipelines"))}
        assert ours <= {"histojax.training"}, path
        assert "from histojax.training import default_config" in path.read_text() or path.name == "__init__.py"


def test_one_place_for_orbax_for_mesh_axes_and_for_torch() -> None:
    using = {
        word: {module_of(path) for path in FILES if word in path.read_text()}
        for word in ("import orbax", "AxisType", "PartitionSpec")
    }
    assert using["import orbax"] == {"histojax.training.checkpoint", "histojax.training.compat"}
    assert using["AxisType"] == using["PartitionSpec"] == {"histojax.distributed.sharding"}
    # What a written README shows is no import of ours.
    importing = {module_of(path) for path in FILES if imports(path) & {"torch", "tensorflow"}}
    assert importing == {f"histojax.inference.export.{name}" for name in ("torch_graph", "torchscript")}


@pytest.mark.parametrize("room", ["histojax", "data_pipelines", "configs"])
def test_every_module_can_be_imported(room: str) -> None:
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, room + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_no_source_file_is_longer_than_a_room() -> None:
    assert not {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
