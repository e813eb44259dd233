"""`histojax models`: what there is, how large, and how it is known to be what its name says."""

import jax
from flax import nnx

from histojax import models, weights
from histojax.models.cost import cost
from histojax.models.rngs import seeded

_SIZE, _CLASSES = 224, 1000
# What the tests in tests/parity compare a model with.
PARITY = {
    "resnet50": "torchvision resnet50",
    "dala_resnet50": "PyTorch twin",
    "seresnet50": "timm seresnet50",
    "densenet121": "torchvision densenet121",
    "vgg16": "torchvision vgg16",
    "vgg16_bn": "torchvision vgg16_bn",
    "vgg16_inception": "PyTorch twin",
    "vit_base_patch16_224": "timm, torchvision vit_b_16",
    "dinov2_vitb14": "timm vit_base_patch14_dinov2",
    "vit": "timm and transformers, in the layouts of UNI, UNI2, GigaPath, H-optimus, Virchow2, Phikon, DINOv2",
    "swin_tiny_patch4_window7_224": "torchvision swin_t",
    "ldcsf": "PyTorch twin",
}


def table() -> str:
    """The models as text, a row each, at 224×224 and 1000 classes."""
    rows = [["model", "param. M", "GFLOP", "feature maps", "weights by names of", "compared with"]]
    for name in models.MODELS:
        parameters, flops = cost(name, _CLASSES, _SIZE, {})
        known = weights.TABLES.get(name)
        rows.append(
            [
                name,
                f"{parameters / 1e6:.2f}",
                f"{flops / 1e9:.2f}",
                ", ".join(feature_maps(name)),
                ", ".join(dict.fromkeys(naming.title.partition(",")[0] for naming in known.namings)) if known else "-",
                PARITY[name],
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def feature_maps(name: str) -> dict[str, tuple[int, ...]]:
    """Shape (h, w, c) of each named intermediate map of an image of 224×224, in the order of the forward pass."""
    model = nnx.eval_shape(lambda: models.create(name, num_classes=_CLASSES, rngs=seeded(default=0)))
    graph, state = nnx.split(nnx.view(model, use_running_average=True, deterministic=True, raise_if_not_found=False))
    images = jax.ShapeDtypeStruct((1, _SIZE, _SIZE, 3), "float32")
    order: list[str] = []  # jax sorts the keys of what a traced function returns

    def maps(state: nnx.State, x: jax.Array) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = nnx.merge(graph, state).feature_maps(x)
        order.extend(found)
        return found

    shapes = jax.eval_shape(maps, state, images)
    return {name: shapes[name].shape[1:] for name in order}
