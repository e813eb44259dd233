"""Weights by public names, and a repository for Hugging Face: for timm and WSInfer where they can have the model."""

import dataclasses
import inspect
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from histojax import models, weights
from histojax.core.errors import RunError
from histojax.core.files import write_json
from histojax.evaluation.report.model_card import front_matter
from histojax.inference.export.function import Portable, Written, quiet
from histojax.inference.predictor import Predictor
from histojax.training import pretrained
from histojax.training.step import ModelState, TrainState

FILE, CONFIG = "model.safetensors", "config.json"
TORCHSCRIPT = "torchscript_model.pt"  # as WSInfer wants it
WSINFER = "1.0"  # spec_version of wsinfer-zoo's model-config.schema.json


@dataclasses.dataclass(frozen=True)
class Twin:
    """A model of timm that is the same function of an image of one size.

    Attributes:
      name: timm's.
      first_conv: name of its first convolution.
      classifier: name of its last layer.
      fixed_size: whether timm builds it for one size of image.
      arguments: of the model's options, the keywords of timm's builder.
      wanted: options that timm's model does not have otherwise.
      fits: whether it is the same function at a height and width, given the model's options.
      sizes: in words, where it is.
    """

    name: str
    first_conv: str
    classifier: str
    fixed_size: bool = False
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)
    wanted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fits: Callable[[int, Mapping[str, Any]], bool] = lambda size, options: True
    sizes: str = ""


def _whole_windows(size: int, options: Mapping[str, Any]) -> bool:
    return size % (4 * 2 ** (len(options["depths"]) - 1) * options["window"]) == 0


def _vgg(name: str) -> Twin:
    words = "of images below 256 pixels: larger ones timm pools otherwise"
    return Twin(name, "features.0", "head.fc", fits=lambda size, _: size < 256, sizes=words)


def _vit(name: str) -> Twin:
    words = "at the size of its position embedding (model.options.image_size)"
    return Twin(
        name, "patch_embed.proj", "head", fixed_size=True, wanted={"pool": "token"},
        fits=lambda size, options: options["image_size"] == size, sizes=words,
    )  # fmt: skip


_SWIN = {"depths": "depths", "embed_dim": "embed_dim", "heads": "num_heads", "mlp_ratio": "mlp_ratio"}
_SWIN |= {"window": "window_size"}
TWINS = {
    "resnet50": Twin("resnet50", "conv1", "fc"),
    "seresnet50": Twin("seresnet50", "conv1", "fc", wanted={"reduction": 16}),
    "densenet121": Twin("densenet121", "features.conv0", "classifier"),
    "vgg16": _vgg("vgg16"),
    "vgg16_bn": _vgg("vgg16_bn"),
    "vit_base_patch16_224": _vit("vit_base_patch16_224"),
    "dinov2_vitb14": _vit("vit_base_patch14_dinov2"),
    "swin_tiny_patch4_window7_224": Twin(
        "swin_tiny_patch4_window7_224", "patch_embed.proj", "head.fc", fixed_size=True, arguments=_SWIN,
        fits=_whole_windows, sizes="where windows tile every map, as of 224 pixels: others timm partitions otherwise",
    ),
}  # fmt: skip


def twin_of(portable: Portable) -> tuple[Twin | None, str]:
    """The model of timm that is the trained one, and else in words why there is none."""
    name, size = portable.architecture, portable.predictor.image_size
    twin = TWINS.get(name)
    if twin is None:
        return None, f"timm has no {name}"
    options = _options(portable)
    for option, value in twin.wanted.items():
        if options[option] != value:
            return None, f"timm's {twin.name} has no {option}={options[option]!r}"
    if not twin.fits(size, options):
        return None, f"timm's {twin.name} is the same function only {twin.sizes}, not at {size}"
    return twin, ""


def _timm_naming(portable: Portable) -> str:
    """The title of timm's names among those that are known."""
    return next(naming.title for naming in weights.TABLES[portable.architecture].namings if "timm" in naming.title)


def write_weights(portable: Portable, folder: pathlib.Path, naming: str) -> Written:
    """Writes `model.safetensors` and `config.json` by public names; empty: the first that has one for each parameter.

    Raises:
      RunError: a naming that the model does not have.
    """
    trained = portable.predictor.trained
    pretrained.export(trained.path, folder, naming)
    # Zeros, so that what the file lacks is missed.
    blank = ModelState(_zeros(trained.model.params), _zeros(trained.model.stats), trained.model.rng)
    empty = TrainState(jnp.zeros([], jnp.int32), blank, (), jax.random.key(0), None)
    with quiet(pretrained.__name__):  # the folder has no name yet
        read, _ = pretrained.fill(empty, portable.architecture, str(folder / FILE))
    predictor = Predictor(dataclasses.replace(trained, model=read.model), portable.predictor.batch_size)
    used = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["naming"]
    theirs = "our own paths, with dots" if used == pretrained.OWN else f"those of {used}"
    loading = f"""\
Names of the arrays are {theirs}; `{CONFIG}` says the rest. The model returns logits of normalised images, channels
{"last" if used == pretrained.OWN else "first"}.

```python
import safetensors.numpy

arrays = safetensors.numpy.load_file("{FILE}")
```

With histojax, `--config.model.pretrained={FILE}` starts a training from them.
"""
    return Written(predictor.predict, loading)


def write_repository(portable: Portable, folder: pathlib.Path, licence: str, tile_um: float | None) -> Written:
    """Writes `model.safetensors` and `config.json`, timm's and WSInfer's where they can have the model.

    Raises:
      RunError: a side of a tile that is none.
    """
    twin, no_twin = twin_of(portable)
    naming = pretrained.OWN if twin is None else _timm_naming(portable)
    written = write_weights(portable, folder, naming)
    facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if twin is None:
        words = f"Not for timm: {no_twin}. Not for WSInfer: it wants TorchScript, which only PyTorch makes.\n\n"
        return Written(written.ask, words + written.loading, head=front_matter(licence, "histojax"))
    spacing, lacking = _spacing(portable, tile_um)
    config = _timm(portable, twin) | ({} if lacking else _wsinfer(portable, spacing))
    write_json(folder / CONFIG, config | {"histojax": facts})
    return Written(written.ask, _loading(portable, lacking), head=front_matter(licence, "timm"))


def _loading(portable: Portable, lacking: str) -> str:
    size = portable.predictor.image_size
    rule = "sigmoid()" if portable.predictor.thresholds is not None else "softmax(-1)"
    text = f"""\
Names are those of timm. From the hub it is `hf-hub:OWNER/NAME` instead of `local-dir:.`. timm resizes with Pillow,
histojax with OpenCV: images of another size than {size}×{size} differ a little.

```python
import timm
import torch

model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.inference_mode():
    probabilities = model(torch.zeros(7, 3, {size}, {size})).{rule}
```

With histojax, `--config.model.pretrained={FILE}` (or `hf:OWNER/NAME`) starts a training from it.

### WSInfer

"""
    if lacking:
        return f"{text}Not for WSInfer: {lacking}.\n"
    return f"""\
{text}`{CONFIG}` has WSInfer's fields, too (spec_version {WSINFER}). What is missing is `{TORCHSCRIPT}`, which
only PyTorch makes:

```python
import timm
import torch

model = timm.create_model("local-dir:.", pretrained=True, exportable=True).eval()
torch.jit.trace(model, torch.zeros(1, 3, {size}, {size})).save("{TORCHSCRIPT}")
```
"""


def _timm(portable: Portable, twin: Twin) -> dict[str, Any]:
    data, size, classes = portable.predictor.trained.config.data, portable.predictor.image_size, _classes(portable)
    options = _options(portable)
    arguments = {theirs: options[ours] for ours, theirs in twin.arguments.items()}
    if twin.fixed_size:
        arguments["img_size"] = size
    return {
        "architecture": twin.name,
        "num_classes": len(classes),
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "histojax",
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": twin.fixed_size,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",  # the aspect ratio is ignored
            "mean": list(data.mean),
            "std": list(data.std),
            "num_classes": len(classes),
            "first_conv": twin.first_conv,
            "classifier": twin.classifier,
        },
        "label_names": classes,
    }


def _wsinfer(portable: Portable, spacing: float) -> dict[str, Any]:
    data, size = portable.predictor.trained.config.data, portable.predictor.image_size
    return {
        "spec_version": WSINFER,
        "class_names": _classes(portable),
        "patch_size_pixels": size,
        "spacing_um_px": spacing,
        "transform": [
            {"name": "Resize", "arguments": {"size": size}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": list(data.mean), "std": list(data.std)}},
        ],
    }


def _spacing(portable: Portable, tile_um: float | None) -> tuple[float, str]:
    """µm per pixel of the model's input, and else why WSInfer is not served."""
    trained = portable.predictor.trained
    if portable.predictor.thresholds is not None and len(portable.predictor.classes) > 1:
        return 0.0, "WSInfer takes the softmax over the outputs, and this model's labels are independent of each other"
    if tile_um is None:
        pixels, mpp = trained.meta["data"].get("tile_pixels"), trained.config.data.get("mpp", 0.0)
        if not (pixels and mpp):
            return 0.0, "the side of an image in µm is not known (--tile_um gives it)"
        tile_um = pixels * mpp
    if not 0 < tile_um < float("inf"):
        raise RunError(f"--tile_um={tile_um} is not a length above 0")
    return tile_um / portable.predictor.image_size, ""


def _options(portable: Portable) -> dict[str, Any]:
    """The model's options, with the defaults of those that the config leaves alone."""
    parameters = inspect.signature(models.MODELS[portable.architecture]).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters}
    return defaults | portable.predictor.trained.config.model.options.to_dict()


def _classes(portable: Portable) -> list[str]:
    return list(portable.predictor.classes)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), tree)
