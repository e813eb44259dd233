"""Imports go one way: the picture in the README's map of the source, held true by the import statements."""

import ast
import importlib
import pathlib
import pkgutil

import pytest

from tests.conftest import ROOT

FILES = sorted(p for room in ("histojax", "data_pipelines", "configs") for p in (ROOT / room).rglob("*.py"))
# They import the standard library only; everybody may import them.
_LEAVES = {
    "histojax.division",
    "histojax.errors",
    "histojax.files",
    "histojax.machine",
    "histojax.retries",
    "histojax.settings",
    "histojax.shards",
}
_FOREIGN = {"jax", "flax", "optax", "orbax", "grain", "PIL", "tensorflow_datasets", "ml_collections", "absl", "cv2"}
_FOREIGN |= {"numpy", "pandas", "pyarrow", "tensorboardX", "tensorflow", "torch", "tqdm", "sklearn", "matplotlib"}
_FOREIGN |= {"jinja2", "ml_dtypes", "safetensors", "openslide", "tifffile", "imagecodecs", "shapely", "scipy"}
_FOREIGN |= {"contourpy", "yaml", "jax2onnx", "onnx", "onnxruntime"}

# Room -> what it may import of ours (besides itself and the leaves), and of others.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "histojax.division": (set(), set()),
    "histojax.errors": (set(), set()),
    "histojax.files": (set(), set()),
    "histojax.machine": (set(), set()),
    "histojax.retries": (set(), set()),
    "histojax.settings": (set(), set()),
    "histojax.shards": (set(), set()),
    "configs": (set(), {"ml_collections"}),
    "data_pipelines": (set(), {"tensorflow_datasets", "numpy", "cv2", "PIL", "pyarrow"}),
    "histojax.models": (set(), {"jax", "flax", "numpy"}),
    "histojax.weights": (set(), {"numpy", "ml_dtypes", "safetensors"}),
    "histojax.evaluation": (set(), {"numpy", "pandas", "pyarrow", "sklearn", "matplotlib", "jinja2", "yaml"}),
    "histojax.data": ({"data_pipelines"}, {"numpy", "grain", "cv2", "imagecodecs", "absl"}),
    "histojax.inference": (
        {"histojax.evaluate", "histojax.checkpoint", "histojax.data", "histojax.models", "histojax.sharding"}
        | {
            "histojax.step",
            "histojax.rngs",
            "histojax.build",
            "histojax.pretrained",
            "histojax.weights",
            "histojax.writer",
        }
        | {"histojax.evaluation", "data_pipelines"},
        {"jax", "flax", "optax", "numpy", "pandas", "pyarrow", "cv2", "PIL", "tqdm", "safetensors"}
        | {"matplotlib", "contourpy", "jax2onnx", "onnx", "onnxruntime"},
    ),
    "histojax.slides": (
        {"histojax.data", "histojax.evaluation", "data_pipelines"},
        {"numpy", "pandas", "pyarrow", "scipy", "cv2", "PIL", "openslide", "tifffile", "imagecodecs", "shapely"}
        | {"matplotlib", "jinja2", "tqdm"},
    ),
    # PyTorch's side imports the first, the second waits while others compute.
    "histojax.bench.contestant": ({"data_pipelines"}, set()),
    "histojax.bench.rounds": (set(), set()),
    "histojax.losses": (set(), {"jax", "numpy"}),
    "histojax.metrics": (set(), {"jax"}),
    "histojax.tasks": ({"histojax.losses", "histojax.metrics"}, {"jax"}),
    "histojax.optimizer": (set(), {"jax", "optax"}),
    "histojax.sharding": (set(), {"jax", "numpy"}),
    "histojax.compilation": (set(), {"jax"}),
    "histojax.rngs": (set(), {"jax", "flax"}),
    "histojax.step": ({"histojax.rngs", "histojax.sharding", "histojax.tasks"}, {"jax", "flax", "optax"}),
    "histojax.processes": (set(), {"jax"}),
    "histojax.checkpoint": ({"histojax.processes", "histojax.sharding"}, {"jax", "numpy", "orbax"}),
    "histojax.writer": (set(), {"jax", "tensorboardX", "tqdm"}),
    "histojax.monitoring": ({"histojax.processes", "histojax.writer"}, {"jax"}),
}


def room_of(module: str) -> str | None:
    return max((room for room in ROOMS if module == room or module.startswith(room + ".")), key=len, default=None)


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_imports_what_its_room_may(path: pathlib.Path) -> None:
    room = room_of(module_of(path))
    if room is None:
        return  # main, train, evaluate, build, console: the top, which may use everything
    ours, others = ROOMS[room]
    for name in imports(path):
        top = name.split(".")[0]
        if top in _FOREIGN:
            assert top in others, f"{room} must not import {name}"
        elif top in ("histojax", "data_pipelines", "configs") and name not in ("histojax", "data_pipelines"):
            allowed = ours | _LEAVES | {room}
            parents = {".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2)}
            assert parents & allowed, f"{room} must not import {name}"


def test_one_file_each_for_orbax_mesh_axes_and_tensorflow() -> None:
    using = {
        word: {module_of(path) for path in FILES if word in path.read_text()}
        for word in ("import orbax", "AxisType", "PartitionSpec")
    }
    assert using["import orbax"] == {"histojax.checkpoint"}
    assert using["AxisType"] == using["PartitionSpec"] == {"histojax.sharding"}
    for path in FILES:  # what a written README shows is no import of ours
        assert not imports(path) & {"torch", "tensorflow"}, path


@pytest.mark.parametrize("room", ["histojax", "data_pipelines", "configs"])
def test_every_module_can_be_imported(room: str) -> None:
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, room + "."):
        importlib.import_module(module.name)


def test_no_source_file_is_longer_than_a_room() -> None:
    assert not {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
