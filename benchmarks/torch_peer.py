"""The PyTorch worker of `histojax bench --against torch`: `python -m benchmarks.torch_peer JSON`.

It is set up as its users do it: channels_last, fused AdamW, autocast for bfloat16, `torch.compile` if requested. The
normalised batch lies on the device. Models come from torchvision and timm; DALAResNet50 and LDCSF are the twins of the
parity tests. Images come from a DataLoader with Pillow and torchvision's transforms.
"""

import functools
import itertools
import json
import pathlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from histojax.cli.bench import worker
from histojax.cli.bench.worker import COPY_BYTES, fastest
from histojax.core.errors import RunError
from tests.helpers import dala_resnet_torch, ldcsf_torch, torchvision_import  # noqa: F401  (makes torchvision importable)

import timm  # isort: skip  (it imports torchvision)
import torchvision  # isort: skip
from torchvision import transforms  # isort: skip

_CLASSES = 2
_MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}  # rows and columns of the matrices, by device
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dala_resnet50(attention: str = "layer4", head: str = "dual", dropout: float = 0.2) -> nn.Module:
    """Build the twin with those options of our model that it supports, and the same defaults."""
    return dala_resnet_torch.DALAResNet50(_CLASSES, attention, head, dropout)


def _torchvision(name: str) -> Callable[..., nn.Module]:
    return functools.partial(getattr(torchvision.models, name), num_classes=_CLASSES)


def _timm(name: str) -> Callable[..., nn.Module]:
    return functools.partial(timm.create_model, name, num_classes=_CLASSES)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet50": _torchvision("resnet50"),
    "dala_resnet50": dala_resnet50,
    "seresnet50": _timm("seresnet50"),
    "densenet121": _torchvision("densenet121"),
    "vgg16": _torchvision("vgg16"),
    "vgg16_bn": _torchvision("vgg16_bn"),
    "vit_base_patch16_224": _timm("vit_base_patch16_224"),
    "swin_tiny_patch4_window7_224": _timm("swin_tiny_patch4_window7_224"),
    "ldcsf": functools.partial(ldcsf_torch.LDCSF, _CLASSES),
}


class _Model:
    """Training steps or predictions of a model with random weights, on one random batch."""

    training: bool

    def __init__(self, spec: dict[str, Any]):
        self._device = torch.device(spec["device"])
        self._dtype = _DTYPES[spec["dtype"]]
        torch.manual_seed(0)
        model = _model(spec).to(self._device, memory_format=torch.channels_last).train(self.training)
        self._optimizer = _optimizer(spec["optimizer"], model)
        self._model = torch.compile(model) if spec["compile"] else model
        self._n, size = spec["batch_size"], spec["image_size"]
        self._images = torch.randn(self._n, 3, size, size, device=self._device)
        self._images = self._images.contiguous(memory_format=torch.channels_last)
        self._labels = torch.randint(_CLASSES, (self._n,), device=self._device)
        self._loss = nn.CrossEntropyLoss()
        began = time.perf_counter()
        self._once()
        self._wait()
        self._first = time.perf_counter() - began

    def _once(self) -> None:
        """Start one repeat."""
        raise NotImplementedError

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _logits(self) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            logits: torch.Tensor = self._model(self._images)
            return logits

    def facts(self) -> dict[str, Any]:
        """See `worker.Side`."""
        cuda = self._device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads",
            "version": f"torch {torch.__version__}",
            "first_call_seconds": self._first,
        }

    def run(self, repeats: int) -> dict[str, Any]:
        """See `worker.Side`."""
        began = time.perf_counter()
        for _ in range(repeats):
            self._once()
        self._wait()
        return {"seconds": time.perf_counter() - began, "images": repeats * self._n}

    def memory(self) -> dict[str, Any]:
        """See `worker.Side`."""
        if self._device.type == "cuda":
            return {"bytes": torch.cuda.max_memory_allocated(), "of": "device"}
        return {"bytes": worker.memory_peak(), "of": "process"}

    def limits(self) -> dict[str, Any]:
        """See `worker.Side`."""
        side = _MATMUL_SIDE[self._device.type]
        square = torch.ones(side, side, dtype=self._dtype, device=self._device)
        array = torch.ones(COPY_BYTES // 4, device=self._device)
        return {
            "matmul_flops": 2 * side**3 / fastest(self._blocking(lambda: square @ square)),
            "copy_bytes": 2 * COPY_BYTES / fastest(self._blocking(array.neg_)),
        }

    def _blocking(self, compute: Callable[[], Any]) -> Callable[[], None]:
        def compute_and_wait() -> None:
            compute()
            self._wait()

        return compute_and_wait


class _Step(_Model):
    """Training steps."""

    training = True

    def _once(self) -> None:
        loss = self._loss(self._logits().float(), self._labels)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class _Infer(_Model):
    """Predictions."""

    training = False

    @torch.inference_mode()
    def _once(self) -> None:
        self._logits().float().softmax(-1)


class _QuarterTurn:
    """Rotates by 0, 90, 180 or 270 degrees."""

    _TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)

    def __call__(self, image: Image.Image) -> Image.Image:
        turn = random.choice((None, *self._TURNS))
        return image if turn is None else image.transpose(turn)


class _Images(Dataset):
    def __init__(self, spec: dict[str, Any]):
        self._paths = sorted(pathlib.Path(spec["root"]).rglob("*.png"))
        jitter, ratio = spec["colour_jitter"], (3 / 4, 4 / 3)
        self._transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(spec["image_size"], (spec["crop_scale"], 1.0), ratio, antialias=True),
                transforms.RandomHorizontalFlip(),
                transforms.RandomVerticalFlip(),
                _QuarterTurn(),
                transforms.ColorJitter(jitter, jitter, jitter),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self._paths[index]) as image:
            return self._transform(image.convert("RGB")), index % _CLASSES


class _Input:
    """Augmented batches from the images of a folder."""

    _PREFETCHED = 2  # batches per worker, the default of DataLoader

    def __init__(self, spec: dict[str, Any]):
        images = _Images(spec)
        workers = spec["peer_workers"]
        loader = DataLoader(
            images, spec["batch_size"], shuffle=True, num_workers=workers, drop_last=True,
            persistent_workers=workers > 0, prefetch_factor=self._PREFETCHED if workers else None,
        )  # fmt: skip
        if not len(loader):
            raise RunError(f"{spec['root']}: {len(images)} images are too few for a batch of {spec['batch_size']}")
        self._batches: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(loader))
        self._n, self._images = spec["batch_size"], len(images)
        # Batches that are ready before a round begins must not count.
        self._buffered = workers * self._PREFETCHED + 1
        next(self._batches)

    def facts(self) -> dict[str, Any]:
        """See `worker.Side`."""
        return {"version": f"torch {torch.__version__}", "images": self._images}

    def run(self, repeats: int) -> dict[str, Any]:
        """See `worker.Side`."""
        for _ in range(self._buffered):
            next(self._batches)
        began = time.perf_counter()
        for _ in range(repeats):
            next(self._batches)
        return {"seconds": time.perf_counter() - began, "images": repeats * self._n}


def _model(spec: dict[str, Any]) -> nn.Module:
    name, options = spec["model"], spec["options"]
    if name not in MODELS:
        raise RunError(f"--model {name}: --against torch supports only {', '.join(MODELS)}; omit --against for others")
    if name == "vit_base_patch16_224":
        options = options | {"img_size": spec["image_size"]}
    try:
        return MODELS[name](**options)
    except TypeError as error:
        raise RunError(f"--options {json.dumps(options)}: not supported by the PyTorch {name}: {error}") from error


def _optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=False, fused=True)
    return torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05, fused=True)


def _make(spec: dict[str, Any]) -> Any:
    torch.set_num_threads(spec["cores"])
    torch.backends.cudnn.benchmark = True  # XLA also picks its convolutions by trying them
    return {"step": _Step, "infer": _Infer, "input": _Input}[spec["work"]](spec)


if __name__ == "__main__":
    worker.serve(_make)
