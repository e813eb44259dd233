"""Round trips: a PyTorch file is imported into each model and exported; the reference loads the same weights."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch

from histojax import weights
from histojax.weights.fitting import fit
from histojax.weights.saving import rewrite
from tests.helpers import twins
from tests.helpers.parity import torch_logits

# After twins, which makes torchvision importable.
import timm  # isort: skip
import torchvision  # isort: skip

pytestmark = [pytest.mark.parity, pytest.mark.slow]
K = twins.CLASSES
Make = Callable[[], torch.nn.Module]


class Case(NamedTuple):
    """A model, its reference, the naming that goes out, the side of the images, and options that make it narrow."""

    model: str
    make: Make
    naming: str
    side: int = 64
    options: dict[str, Any] | None = None


def vgg(batch_norm: bool) -> torch.nn.Module:
    """torchvision's VGG16 with 64 in place of 4096 hidden units, which are most of its 138 million parameters."""
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=batch_norm)
    model = torchvision.models.VGG(layers, init_weights=False)
    for index, sizes in ((0, (25088, 64)), (3, (64, 64)), (6, (64, K))):
        model.classifier[index] = torch.nn.Linear(*sizes)
    return model


VIT = {"embed_dim": 96, "heads": 3}  # as deep as ViT-B
CASES = {
    "resnet50 torchvision": Case("resnet50", lambda: torchvision.models.resnet50(num_classes=K), "torchvision/timm"),
    "seresnet50 timm": Case("seresnet50", lambda: timm.create_model("seresnet50", num_classes=K), "timm"),
    "densenet121 torchvision": Case(
        "densenet121", lambda: torchvision.models.densenet121(num_classes=K), "torchvision/timm"
    ),
    "vgg16 torchvision": Case("vgg16", lambda: vgg(False), "torchvision", options={"hidden": 64}),
    "vgg16_bn torchvision": Case("vgg16_bn", lambda: vgg(True), "torchvision", options={"hidden": 64}),
    "vit timm": Case(
        "vit_base_patch16_224",
        lambda: timm.create_model("vit_base_patch16_224", num_classes=K, embed_dim=96, num_heads=3),
        "timm/DINOv2",
        224,
        VIT,
    ),
    "vit torchvision": Case(
        "vit_base_patch16_224",
        lambda: torchvision.models.VisionTransformer(224, 16, 12, 3, 96, 384, num_classes=K),
        "torchvision",
        224,
        VIT,
    ),
    "dinov2 timm": Case(
        "dinov2_vitb14",
        lambda: timm.create_model("vit_base_patch14_dinov2", num_classes=K, img_size=224, embed_dim=96, num_heads=3),
        "timm/DINOv2",
        224,
        VIT,
    ),
    "swin torchvision": Case(
        "swin_tiny_patch4_window7_224", lambda: torchvision.models.swin_t(num_classes=K), "torchvision", 224
    ),
    "swin timm": Case(
        "swin_tiny_patch4_window7_224",
        lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=K),
        "timm",
        224,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_reference_loads_exported_weights(case: str, tmp_path: pathlib.Path) -> None:
    name, make, naming, side, options = CASES[case]
    with torch.no_grad():
        reference = twins.randomised(make())
    x = twins.images(side)[:1]
    wanted = torch_logits(reference, x)
    torch.save(reference.state_dict(), tmp_path / "theirs.pth")
    said = rewrite(str(tmp_path / "theirs.pth"), name, K, tmp_path / "out", naming, options=options)
    assert "initial values kept" not in said
    path = tmp_path / "out" / "model.safetensors"
    with torch.device("meta"):
        back = make()
    missing, unexpected = back.load_state_dict(safetensors.torch.load_file(path), strict=False, assign=True)
    assert not unexpected
    assert all(key.endswith(("num_batches_tracked", "relative_position_index")) for key in missing), missing
    # What is no parameter: counters and indices, which the file need not have.
    state = reference.state_dict()
    back.load_state_dict({key: state[key] for key in missing}, strict=False, assign=True)
    for key, buffer in reference.named_buffers():
        if key not in state:  # timm's Swin keeps such as these out of its files
            module, _, attribute = key.rpartition(".")
            setattr(back.get_submodule(module), attribute, buffer)
    for key, value in back.state_dict().items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)
    np.testing.assert_allclose(torch_logits(back.eval(), x), wanted, atol=1e-5 * np.abs(wanted).max())
    model = twins.abstract(name, **options or {})
    values, _ = fit(weights.inspect(path), name, twins.expected(model))
    found = twins.logits(model, values, x)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
