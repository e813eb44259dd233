"""Worker processes of the peers that `histojax bench --against` compares with.

The peers are programs of the repository's `benchmarks/` folder, which the installed package does not contain.
"""

import os
import pathlib
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from histojax.cli.bench.rounds import WorkerProcess
from histojax.core.errors import RunError

_LIBRARIES = {"torch": ("torch", "torchvision", "timm"), "deepzoom": ("openslide",)}


def repository() -> pathlib.Path:
    """Return the repository's root, which holds `benchmarks/`.

    Raises:
      RunError: histojax is installed without the repository.
    """
    root = pathlib.Path(__file__).parents[3]
    if not (root / "benchmarks" / "torch_peer.py").is_file():
        raise RunError(
            "--against needs the repository's benchmarks folder, which the installed package does not contain. Clone "
            "the repository, run pip install -e '.[test]' there and try again, or omit --against"
        )
    return root


def require(peer: str | None) -> None:
    """Check that a peer can be started, before anything is compiled.

    Args:
      peer: `torch`, `deepzoom`, or None for no peer.

    Raises:
      RunError: its program or its library is missing.
    """
    if peer is None:
        return
    repository()
    if missing := [name for name in _LIBRARIES[peer] if find_spec(name) is None]:
        raise RunError(
            f"--against {peer}: {', '.join(missing)} not installed. Run pip install -e '.[test]', or omit --against"
        )


def start_torch(name: str, spec: Mapping[str, Any], environment: Mapping[str, str]) -> WorkerProcess:
    """Start the PyTorch worker, `benchmarks/torch_peer.py`."""
    return _start("benchmarks.torch_peer", name, spec, environment)


def start_deepzoom(name: str, spec: Mapping[str, Any]) -> WorkerProcess:
    """Start the worker of OpenSlide's DeepZoomGenerator, `benchmarks/deepzoom_peer.py`."""
    return _start("benchmarks.deepzoom_peer", name, spec, {})


def torch_device(platform: str) -> str:
    """Return PyTorch's device for a jax platform.

    Raises:
      RunError: PyTorch has none for it.
    """
    if platform not in ("cpu", "gpu"):
        raise RunError(f"--against torch: PyTorch cannot be compared on a {platform}; omit --against")
    return "cuda" if platform == "gpu" else "cpu"


def _start(module: str, name: str, spec: Mapping[str, Any], environment: Mapping[str, str]) -> WorkerProcess:
    path = os.pathsep.join(filter(None, [str(repository()), os.environ.get("PYTHONPATH", "")]))
    return WorkerProcess(name, [sys.executable, "-m", module], spec, {**environment, "PYTHONPATH": path})
