"""Export weights by public names, or a Hugging Face repository that timm and WSInfer can load where possible."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from histojax import models
from histojax.core.errors import RunError
from histojax.core.files import write_json
from histojax.core.quiet import quiet_logger
from histojax.evaluation.report.model_card import front_matter
from histojax.inference.export.exportable import ExportableModel, ExportedModel
from histojax.inference.predictor import Predictor
from histojax.models import TimmModel
from histojax.training import pretrained
from histojax.training.state import ModelState, TrainState
from histojax.weights.fitting import OWN

FILE, CONFIG = "model.safetensors", "config.json"
TORCHSCRIPT = "torchscript_model.pt"  # the name that WSInfer expects
WSINFER = "1.0"  # spec_version of wsinfer-zoo's model-config.schema.json


def timm_model(model: ExportableModel) -> tuple[TimmModel | None, str]:
    """Find the timm model that computes the same function; if there is none, return None and the reason."""
    spec, size = models.spec(model.architecture), model.predictor.image_size
    timm = spec.timm
    if timm is None:
        return None, f"timm has no {spec.name}"
    config = _config(model)
    for option in spec.options:
        value = getattr(config, option)
        adjustable = option in timm.arguments or option in spec.drop_options  # nothing is dropped in inference
        if not adjustable and value != getattr(spec.config, option):
            return None, f"timm's {timm.name} has no {option}={value!r}"
    if not timm.fits(size, config):
        return None, f"timm's {timm.name} is the same function only {timm.sizes}, not at {size}"
    return timm, ""


def _timm_naming(model: ExportableModel) -> str:
    """Return the title of the naming scheme that timm uses."""
    return next(naming.title for naming in models.spec(model.architecture).namings if "timm" in naming.title)


def write_weights(model: ExportableModel, folder: pathlib.Path, naming: str) -> ExportedModel:
    """Write `model.safetensors` and `config.json` with the arrays under public names, and read them back.

    Args:
      model: the model.
      folder: folder to write to.
      naming: naming scheme; empty: the first that has a name for every parameter.

    Raises:
      RunError: the model does not have this naming scheme.
    """
    trained = model.predictor.trained
    pretrained.export(trained.path, folder, naming)
    # Start from zeros, so that an array missing from the file shows in the comparison.
    blank = ModelState(_zeros(trained.model.params), _zeros(trained.model.stats), trained.model.rng)
    empty = TrainState(jnp.zeros([], jnp.int32), blank, (), jax.random.key(0), None)
    with quiet_logger(pretrained.__name__):  # its messages would name a temporary folder
        read, _ = pretrained.fill(empty, model.architecture, str(folder / FILE))
    predictor = Predictor(dataclasses.replace(trained, model=read.model), model.predictor.batch_size)
    used = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["naming"]
    names = "the paths of histojax, with dots" if used == OWN else f"those of {used}"
    loading = f"""\
The names of the arrays are {names}; `{CONFIG}` contains everything else. The model maps normalised images, channels
{"last" if used == OWN else "first"}, to logits.

```python
import safetensors.numpy

arrays = safetensors.numpy.load_file("{FILE}")
```

To start training from them with histojax, set `--config.model.pretrained={FILE}`.
"""
    return ExportedModel(predictor.predict_inputs, loading)


def write_repository(
    model: ExportableModel, folder: pathlib.Path, licence: str, tile_um: float | None
) -> ExportedModel:
    """Write `model.safetensors` and `config.json`, in the form of timm and WSInfer where they can load the model.

    Args:
      model: the model.
      folder: folder to write to.
      licence: identifier of the licence; empty: unknown.
      tile_um: side of an image in µm; None: from the checkpoint.

    Raises:
      RunError: `tile_um` is not positive and finite.
    """
    timm, no_timm = timm_model(model)
    naming = OWN if timm is None else _timm_naming(model)
    written = write_weights(model, folder, naming)
    facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if timm is None:
        note = f"Not for timm: {no_timm}. For WSInfer, use `--to torchscript`.\n\n"
        return ExportedModel(written.predict, note + written.loading, head=front_matter(licence, "histojax"))
    for_wsinfer, obstacle = wsinfer(model, tile_um)
    write_json(folder / CONFIG, _timm_config(model, timm) | for_wsinfer | {"histojax": facts})
    return ExportedModel(written.predict, _loading(model, obstacle), head=front_matter(licence, "timm"))


def _loading(model: ExportableModel, obstacle: str) -> str:
    """Describe how timm and WSInfer load the repository; `obstacle` is the reason why WSInfer cannot."""
    size = model.predictor.image_size
    rule = "sigmoid()" if model.predictor.thresholds is not None else "softmax(-1)"
    text = f"""\
The names of the arrays are those of timm. To load from the hub, replace `local-dir:.` with `hf-hub:OWNER/NAME`. timm
resizes with Pillow and histojax with OpenCV, so results differ slightly for images that are not {size}×{size}.

```python
import timm
import torch

model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.inference_mode():
    probabilities = model(torch.zeros(7, 3, {size}, {size})).{rule}
```

To start training from it with histojax, set `--config.model.pretrained={FILE}` (or `hf:OWNER/NAME`).

### WSInfer

"""
    if obstacle:
        return f"{text}Not for WSInfer: {obstacle}.\n"
    return f"""\
{text}`{CONFIG}` also has WSInfer's fields (spec_version {WSINFER}). WSInfer also needs `{TORCHSCRIPT}`, which only
PyTorch writes:

```python
import timm
import torch

model = timm.create_model("local-dir:.", pretrained=True, exportable=True).eval()
torch.jit.trace(model, torch.zeros(1, 3, {size}, {size})).save("{TORCHSCRIPT}")
```
"""


def _timm_config(model: ExportableModel, timm: TimmModel) -> dict[str, Any]:
    data, size, classes = model.predictor.trained.config.data, model.predictor.image_size, _classes(model)
    config = _config(model)
    arguments = {timm_name: getattr(config, option) for option, timm_name in timm.arguments.items()}
    if timm.fixed_size:
        arguments["img_size"] = size
    return {
        "architecture": timm.name,
        "num_classes": len(classes),
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "histojax",
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": timm.fixed_size,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",  # the aspect ratio is not kept
            "mean": list(data.mean),
            "std": list(data.std),
            "num_classes": len(classes),
            "first_conv": timm.first_conv,
            "classifier": timm.classifier,
        },
        "label_names": classes,
    }


def wsinfer(model: ExportableModel, tile_um: float | None) -> tuple[dict[str, Any], str]:
    """Return the fields of WSInfer's config, and "", or no fields, and the reason why WSInfer cannot use the model.

    Args:
      model: the model.
      tile_um: side of an image in µm; None: from the checkpoint.

    Raises:
      RunError: `tile_um` is not positive and finite.
    """
    spacing, obstacle = _spacing(model, tile_um)
    if obstacle:
        return {}, obstacle
    data, size = model.predictor.trained.config.data, model.predictor.image_size
    return {
        "spec_version": WSINFER,
        "class_names": _classes(model),
        "patch_size_pixels": size,
        "spacing_um_px": spacing,
        "transform": [
            {"name": "Resize", "arguments": {"size": size}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": list(data.mean), "std": list(data.std)}},
        ],
    }, ""


def _spacing(model: ExportableModel, tile_um: float | None) -> tuple[float, str]:
    """Return µm per pixel of the model's input, and the reason, or "", why WSInfer cannot use the model."""
    trained = model.predictor.trained
    if model.predictor.thresholds is not None and len(model.predictor.classes) > 1:
        return (
            0.0,
            "WSInfer applies a softmax to the outputs, but this model has independent labels",
        )
    if tile_um is None:
        pixels, mpp = trained.meta["data"].get("tile_pixels"), trained.config.data.get("mpp", 0.0)
        if not (pixels and mpp):
            return 0.0, "the side of an image in µm is unknown (set it with --tile_um)"
        tile_um = pixels * mpp
    if not 0 < tile_um < float("inf"):
        raise RunError(f"--tile_um={tile_um} is not a positive length")
    return tile_um / model.predictor.image_size, ""


def _config(model: ExportableModel) -> Any:
    """Return the model's config: its options, and the defaults of all others."""
    options = model.predictor.trained.config.model.options.to_dict()
    return models.spec(model.architecture).configure(options)


def _classes(model: ExportableModel) -> list[str]:
    return list(model.predictor.classes)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), tree)
