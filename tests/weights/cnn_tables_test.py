"""Names of SE-ResNet, DenseNet and VGG: every public one fits, logits are the reference's, and the way back works."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from histojax import models
from histojax.weights import MismatchError, convert, export
from tests.helpers import twins
from tests.helpers.parity import torch_logits

# After twins, which makes torchvision importable.
import timm  # isort: skip
import torchvision  # isort: skip

pytestmark = pytest.mark.parity


def arrays_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    state = module.state_dict()
    return {name: tensor.numpy() for name, tensor in state.items() if "num_batches_tracked" not in name}


def old_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As torchvision's DenseNet files had them before 2018."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): array for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("name", "make", "rename", "naming"),
    [
        ("seresnet50", lambda: timm.create_model("seresnet50", num_classes=twins.CLASSES), dict, "timm"),
        ("densenet121", lambda: torchvision.models.densenet121(num_classes=twins.CLASSES), dict, "torchvision/timm"),
        ("densenet121", lambda: timm.create_model("densenet121", num_classes=twins.CLASSES), dict, "torchvision/timm"),
        (
            "densenet121",
            lambda: torchvision.models.densenet121(num_classes=twins.CLASSES),
            old_names,
            "torchvision before 2018",
        ),
    ],
)
def test_logits_are_the_references(
    name: str, make: Callable[[], torch.nn.Module], rename: Callable[[Any], dict[str, np.ndarray]], naming: str
) -> None:
    module = twins.randomised(make())
    model = twins.abstract(name)
    values, report = convert(rename(arrays_of(module)), models.spec(name), twins.expected(model))
    assert report.naming == naming
    assert not report.initial
    assert not report.left_out
    x = twins.images(64)
    wanted = torch_logits(module, x)
    np.testing.assert_allclose(twins.logits(model, values, x), wanted, atol=1e-4 * np.abs(wanted).max())
    back = export(values, models.spec(name), naming)
    again = rename(arrays_of(module))
    assert back.keys() == again.keys()
    for key, array in back.items():
        np.testing.assert_array_equal(array, again[key])
        assert array.flags.c_contiguous


def shapes_of(make: Callable[[], torch.nn.Module]) -> dict[str, np.ndarray]:
    """The names and shapes of a large model, without its memory."""
    with torch.device("meta"):
        state = make().state_dict()
    return {k: np.broadcast_to(np.float32(1), tuple(v.shape)) for k, v in state.items() if "num_batches" not in k}


@pytest.mark.parametrize(
    ("name", "make", "naming"),
    [
        ("vgg16", lambda: torchvision.models.vgg16(num_classes=7), "torchvision"),
        ("vgg16", lambda: timm.create_model("vgg16", num_classes=7), "timm"),
        ("vgg16_bn", lambda: torchvision.models.vgg16_bn(num_classes=7), "torchvision"),
    ],
)
def test_every_name_of_vgg_is_converted(name: str, make: Callable[[], torch.nn.Module], naming: str) -> None:
    arrays = shapes_of(make)
    values, report = convert(arrays, models.spec(name), twins.expected(twins.abstract(name, 7)))
    assert (report.naming, report.initial, report.left_out) == (naming, {}, ())
    assert {k: v.shape for k, v in export(values, models.spec(name), naming).items()} == {
        k: v.shape for k, v in arrays.items()
    }
    _, report = convert(arrays, models.spec(name), twins.expected(twins.abstract(name, 5)))
    assert set(report.initial) == {"head/kernel", "head/bias"}


def test_timms_convolution_of_the_whole_map_is_our_dense_layer() -> None:
    small = np.arange(2 * 3 * 49, dtype=np.float32).reshape(2, 3, 7, 7)
    table = models.spec("vgg16")
    rule = next(r for r in table.namings[1].rules if r.path == "classifier/fc1/kernel")
    ours = rule.transform.ours([small])
    x = np.random.default_rng(0).normal(size=(3, 7, 7)).astype(np.float32)
    wanted = torch.nn.functional.conv2d(torch.from_numpy(x)[None], torch.from_numpy(small)).numpy().reshape(2)
    np.testing.assert_allclose(x.reshape(-1) @ ours, wanted, rtol=1e-5)
    np.testing.assert_array_equal(rule.transform.theirs(ours)[0], small)


def test_vgg_inception_takes_only_the_convolutions_of_vgg16() -> None:
    arrays = shapes_of(lambda: torchvision.models.vgg16(num_classes=7))
    values, report = convert(arrays, models.spec("vgg16_inception"), twins.expected(twins.abstract("vgg16_inception")))
    assert len(values) == 26
    assert {path.split("/")[0] for path in report.initial} == {"inceptions", "head"}
    with pytest.raises(MismatchError, match=r"missing features\.0\.weight"):
        convert({k: v for k, v in arrays.items() if k != "features.0.weight"}, models.spec("vgg16_inception"),
                twins.expected(twins.abstract("vgg16_inception")))  # fmt: skip
