"""The models by name. This package imports jax, flax and numpy only.

To add a model to the package, write one file and add one line:

1. In a new file, define a frozen config dataclass (its fields are the options), the `nnx.Module`, and
   `SPEC = ModelSpec(...)`. Names of public weights may go into a file of `naming/`.
2. Add the specification to the list below.

Training, weight files, optimizer groups, Grad-CAM, exports, `histojax models` and the tests over all models read the
specification; nothing else has to change.

A model outside the package needs no change here. Call `histojax.models.register(SPEC)` in a module of your own and
either name that module in `config.plugins`, or install it with an entry point in the group `histojax.models` that
refers to the specification:

    [project.entry-points."histojax.models"]
    my_model = "my_package.my_model:SPEC"
"""

from __future__ import annotations

from histojax.models import dala_resnet, densenet, ldcsf, resnet, seresnet, swin, vgg, vit
from histojax.models.registry import (
    ModelSpec,
    TimmModel,
    check_image_size,
    create,
    names,
    register,
    spec,
)

__all__ = [
    "ModelSpec",
    "TimmModel",
    "check_image_size",
    "create",
    "names",
    "register",
    "spec",
]

# The order of `histojax models`.
for _spec in (
    resnet.SPEC,
    dala_resnet.SPEC,
    seresnet.SPEC,
    densenet.SPEC,
    *vgg.SPECS,
    vit.VIT_BASE,
    swin.SPEC,
    vit.DINOV2_BASE,
    vit.DINOV2_SMALL,
    vit.VIT,
    ldcsf.SPEC,
):
    register(_spec)
