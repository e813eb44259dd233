"""Import and export of weights with real files and the real program, checked by PyTorch."""

import json
import os
import pathlib
import pickle
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax import nnx

from histojax import models
from histojax.core.errors import RunError
from histojax.distributed.sharding import Layout
from histojax.training import pretrained
from histojax.training.optimizer import OptimizerSpec
from histojax.training.program import Program, StepSpec
from histojax.training.tasks import Multiclass
from histojax.weights.hub import locate
from histojax.weights.saving import rewrite
from tests.helpers.command import histojax
from tests.helpers.warm_start import run

# It makes torchvision importable with a CPU build of torch.
from tests.helpers import quick_run, torchvision_import  # noqa: F401  # isort: skip
import torchvision

pytestmark = [pytest.mark.slow, pytest.mark.parity]


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    """torchvision's model with random weights and statistics."""
    return randomised(torchvision.models.resnet50(num_classes=2))


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """The model with random statistics."""
    torch.manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def weights(resnet: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(resnet.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return quick_run.images(tmp_path_factory.mktemp("images") / "synthetic", 2)


def command(workdir: pathlib.Path, images: pathlib.Path, *fields: str) -> list[str]:
    settings = [f"data.root={images}", "data.image_size=32", "train.batch_size=8", "evaluation.resamples=50", *fields]
    return [
        sys.executable, "-m", "histojax.main", "--config=configs/baselines_breakhis.py:resnet50,smoke",
        f"--workdir={workdir}", *(f"--config.{field}" for field in settings),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, images: pathlib.Path, weights: pathlib.Path
) -> tuple[pathlib.Path, str]:
    """Train from the file, with a learning rate so small that the parameters do not change."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    done = run(command(workdir, images, f"model.pretrained={weights}", "optimizer.learning_rate=1e-30"))
    assert done.returncode == 0, done.stderr
    return workdir, done.stderr


def torch_logits(model: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()


def test_a_run_records_its_pretrained_weights(trained: tuple[pathlib.Path, str], weights: pathlib.Path) -> None:
    workdir, log = trained
    results = json.loads((workdir / "results.json").read_text())
    assert results["pretrained"].startswith(f"{weights} (sha256 ")
    assert "267 arrays" in results["pretrained"]
    assert "torchvision/timm names" in log


def test_torchvision_loads_an_exported_checkpoint(
    trained: tuple[pathlib.Path, str], resnet: torch.nn.Module, tmp_path: pathlib.Path
) -> None:
    done = run([
        sys.executable, "-m", "histojax", "convert", f"--checkpoint={trained[0]}", f"--output={tmp_path}",
        "--to=safetensors",
    ])  # fmt: skip
    assert done.returncode == 0, done.stderr
    arrays = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    facts = json.loads((tmp_path / "config.json").read_text())
    assert (facts["architecture"], facts["classes"], facts["image_size"]) == ("resnet50", ["benign", "malignant"], 32)
    back = torchvision.models.resnet50(num_classes=2)
    missing, unexpected = back.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in arrays.items()}, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    # The parameters are still the file's; the statistics have changed with our images.
    for name, value in resnet.named_parameters():
        np.testing.assert_allclose(back.get_parameter(name).detach(), value.detach(), rtol=1e-6, atol=1e-7)
    assert not np.allclose(back.bn1.running_mean, resnet.bn1.running_mean)


def layouts() -> list[Layout]:
    as_on_gpus = Layout(1, jax.devices()[:1])
    as_on_gpus.outputs_first = True
    return [as_on_gpus, Layout(4, jax.devices()[:4])]


@pytest.mark.devices
@pytest.mark.parametrize("layout", layouts(), ids=["laid out as on GPUs", "sharded over four"])
def test_a_state_filled_from_a_file_predicts_the_same_and_can_be_trained(
    layout: Layout, tmp_path: pathlib.Path
) -> None:
    def make_model(rngs: nnx.Rngs) -> nnx.Module:
        return models.create("resnet50", num_classes=2, rngs=rngs, stage_sizes=(1, 1, 1, 1))

    resnet = randomised(torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=2))
    weights = tmp_path / "resnet14.pth"
    torch.save(resnet.state_dict(), weights)

    sgd = OptimizerSpec("sgd", 0.1, 10, schedule="constant")
    spec = StepSpec((0.5,) * 3, (0.25,) * 3, ema_decay=0.9)
    program = Program(make_model, Multiclass(("benign", "malignant"), (1.0, 1.0)), sgd, spec, layout)
    state, origin = pretrained.fill(program.init(), "resnet50", str(weights))
    assert "random at first" not in origin
    image = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    batch = {"image": image, "label": np.array([0, 1, 1, 0], np.int32), "mask": np.ones(4, bool)}
    theirs = torch_logits(resnet, ((image / 255 - 0.5) / 0.25).astype(np.float32))
    expected = np.exp(theirs) / np.exp(theirs).sum(1, keepdims=True)
    for model in (state.model, state.ema):
        probabilities = program.evaluate(model, layout.to_device(batch))["probabilities"]
        np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(program.abstract.model.params)]
    assert [leaf.sharding.spec for leaf in jax.tree.leaves(state.model.params)] == specs
    # A step donates the state's memory, so the model and its average must not share arrays.
    state, metrics = program.train(state, layout.to_device(batch))
    assert np.isfinite(float(metrics["loss"]))
    assert np.isfinite(np.asarray(jax.tree.leaves(state.ema.params)[0])).all()


def test_ldcsf_starts_with_the_swin_weights_of_the_file(tmp_path: pathlib.Path) -> None:
    swin = torchvision.models.swin_transformer.SwinTransformer(
        patch_size=[4, 4], window_size=[2, 2], num_classes=7,
        embed_dim=24, depths=[2, 2, 2, 2], num_heads=[3, 6, 12, 24],
    ).eval()  # fmt: skip
    safetensors.numpy.save_file({k: v.numpy() for k, v in swin.state_dict().items()}, tmp_path / "swin.safetensors")

    def make_model(rngs: nnx.Rngs) -> nnx.Module:
        options = {"embed_dim": 24, "depths": (2, 2, 2), "heads": (3, 6, 12), "window": 2}
        return models.create("ldcsf", num_classes=4, rngs=rngs, **options)

    task = Multiclass(tuple("abcd"), (1.0,) * 4)
    program = Program(make_model, task, None, StepSpec((0.0,) * 3, (1.0,) * 3), Layout(1, jax.devices()[:1]))
    state, origin = pretrained.fill(program.init(), "ldcsf", str(tmp_path / "swin.safetensors"))
    assert origin.endswith("random at first: fr, head, ldc, resnet")
    kernel = state.model.params["stages"][1][0]["attn"]["qkv"]["kernel"]
    np.testing.assert_array_equal(kernel, swin.features[3][0].attn.qkv.weight.detach().numpy().T)


class _Harm:
    def __init__(self, marker: pathlib.Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def test_a_file_that_would_run_code_is_refused_and_leaves_no_results(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(_Harm(tmp_path / "harm")))
    torch.save({"weight": torch.zeros(2), "extra": _Harm(tmp_path / "harm")}, tmp_path / "worse.pth")
    config = ("--config", "tests/helpers/quick_run.py", "--workdir", tmp_path / "run")
    for name in ("bad.pth", "worse.pth"):
        # In this process, so that what the file would run has every chance to run.
        done = histojax("train", *config, f"--config.model.pretrained={tmp_path / name}")
        assert done.returncode == 1
        assert name in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "harm").exists()
        assert not list((tmp_path / "run").rglob("results.json"))


def test_convert_refuses_another_models_weights_and_skips_another_head(
    tmp_path: pathlib.Path, weights: pathlib.Path
) -> None:
    argv = ("convert", f"--weights={weights}", f"--output={tmp_path / 'out'}")
    done = histojax(*argv, "--model=swin_tiny_patch4_window7_224")
    assert done.returncode == 1
    assert "its names" in done.stderr
    done = histojax(*argv, "--model=resnet50", "--num_classes=7")
    assert done.returncode == 0, done.stderr
    assert "the classifier in the file has another shape" in done.stdout
    arrays = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert "layer1.0.conv1.kernel" in arrays
    assert not any(name.startswith("head") for name in arrays)
    # A file with histojax names is read back, without the head it lacks.
    source = str(tmp_path / "out" / "model.safetensors")
    report = rewrite(source, "resnet50", 7, tmp_path / "again")
    assert f"{len(arrays)} arrays loaded by histojax names" in report
    again = safetensors.numpy.load_file(tmp_path / "again" / "model.safetensors")
    assert all(np.array_equal(again[name], array) for name, array in arrays.items())
    with pytest.raises(RunError, match=r"its names, .* are not those of densenet121"):
        rewrite(source, "densenet121", 7, tmp_path / "third")
    done = histojax(*argv, "--model=resnet18")
    assert done.returncode == 1
    assert "unknown model 'resnet18' (did you mean 'resnet50'?)" in done.stderr


def test_a_missing_file_and_a_missing_network_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(RunError, match=r"model\.pretrained=none\.pth: no such file"):
        locate("none.pth")
    hub = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)  # the library has read the environment already
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RunError, match=r"hf:timm/none: model\.safetensors could not be downloaded .* Offline, name"):
        locate("hf:timm/none")
