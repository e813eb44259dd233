"""The packages that only some features need: which extra of the installation carries them, and whether they exist."""

import importlib.util

from histojax.core.errors import RunError

# Extra in pyproject.toml -> the modules that its features import.
MODULES = {
    "slides": ("h5py", "openslide", "scipy", "shapely", "tifffile"),
    "export": ("flatbuffers", "jax2onnx", "onnx", "onnxruntime"),
    "torchscript": ("torch",),
    "hub": ("huggingface_hub",),
    "mlflow": ("mlflow",),
    "probe": ("scipy", "skimage", "sklearn"),
    "wandb": ("wandb",),
}


def require(extra: str, feature: str) -> None:
    """Check that the packages of an extra are installed. Call it before any other work.

    Args:
      extra: key of `MODULES`.
      feature: what needs them, as the subject of the message.

    Raises:
      RunError: some are missing; the message names them and the command that installs them.
    """
    missing = [name for name in MODULES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(f"{feature} needs {', '.join(missing)}; install with: pip install 'histojax[{extra}]'")
