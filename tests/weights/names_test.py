"""Public names to our paths and back: bijections, equal logits, and every mismatch reported at once."""

from __future__ import annotations

import functools
import re

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

from histojax import models, weights
from histojax.models.naming.rules import Template
from histojax.weights import MismatchError, WeightsError
from tests.helpers import twins
from tests.helpers.parity import torch_logits
from tests.helpers.torch_files import numpy_of, save

SWIN = "swin_tiny_patch4_window7_224"


@functools.cache
def twin(kind: str) -> torch.nn.Module:
    with torch.no_grad():
        return twins.randomised(getattr(twins, kind)())


def arrays_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {n: numpy_of(t) for n, t in module.state_dict().items() if "num_batches" not in n}


def swin_model(**options):
    return twins.abstract(SWIN, **(twins.SWIN | options))


def model_of(name: str):
    return swin_model() if name == SWIN else twins.abstract(name)


def microsoft(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """timm's names before 0.9: a merging belongs to the stage before it, and the head is one layer."""
    renamed = {}
    for name, array in arrays.items():
        name = re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        renamed[name.replace("head.fc", "head")] = array
    window = np.zeros((49, 49), np.int64)
    return renamed | {"layers.0.blocks.1.attn_mask": window, "layers.0.blocks.0.attn.relative_position_index": window}


def saved_by_transformers(tmp_path) -> dict[str, np.ndarray]:
    twin("hugging_face_swin").save_pretrained(tmp_path)
    return weights.read(tmp_path / "model.safetensors")


SOURCES = {
    "resnet50 torchvision": ("resnet50", "resnet50", "torchvision/timm", 64),
    "resnet50 timm": ("resnet50", "timm_resnet50", "torchvision/timm", 64),
    "swin torchvision": (SWIN, "torchvision_swin", "torchvision", 224),
    "swin timm": (SWIN, "timm_swin", "timm", 224),
    "swin microsoft": (SWIN, "timm_swin", "Microsoft", 224),
    "swin hugging face": (SWIN, "hugging_face_swin", "Hugging Face", 224),
    "swin hugging face in memory": (SWIN, "hugging_face_swin", "Hugging Face in memory", 224),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_public_naming_gives_equal_logits(source, tmp_path):
    name, kind, title, side = SOURCES[source]
    module, model = twin(kind), model_of(name)
    if title == "Hugging Face":
        arrays = saved_by_transformers(tmp_path)
    else:
        arrays = weights.read(save(tmp_path / "w.pth", module.state_dict()))
    if title == "Microsoft":
        arrays = microsoft(arrays)
    expected = twins.expected(model)
    values, report = weights.convert(arrays, models.spec(name), expected)
    # A bijection: every path has its value, every name is used (but for indices and masks).
    assert values.keys() == expected.keys()
    assert report.naming == title
    assert not report.initial
    assert all("index" in left or "mask" in left for left in report.left_out)
    parameters = sum(a.size for n, a in arrays.items() if "index" not in n and "mask" not in n)
    assert sum(value.size for value in values.values()) == parameters
    for path, value in values.items():
        assert (value.shape, value.dtype) == expected[path]
        assert value.flags.c_contiguous
    x = twins.images(side)
    ours, theirs = twins.logits(model, values, x), torch_logits(module, x)
    assert theirs.std() > 1e-2
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{source}: {error:.1e}")
    assert error < 1e-4


@pytest.mark.parametrize("source", SOURCES)
def test_export_inverts_convert_for_every_array(source, tmp_path):
    name, kind, title, _ = SOURCES[source]
    arrays = saved_by_transformers(tmp_path) if title == "Hugging Face" else arrays_of(twin(kind))
    arrays = microsoft(arrays) if title == "Microsoft" else arrays
    values, _ = weights.convert(arrays, models.spec(name), twins.expected(model_of(name)))
    back = weights.export(values, models.spec(name), title)
    kept = {n: a for n, a in arrays.items() if title != "Microsoft" or ("index" not in n and "mask" not in n)}
    assert back.keys() == kept.keys()
    for n, array in kept.items():
        assert back[n].flags.c_contiguous, n
        np.testing.assert_array_equal(back[n], array, n)


@pytest.mark.parametrize(
    ("name", "kind", "title", "side"),
    [
        ("resnet50", "resnet50", None, 64),
        (SWIN, "torchvision_swin", "torchvision", 224),
        (SWIN, "timm_swin", "timm", 224),
    ],
)
def test_exported_weights_load_strictly_in_torch(name, kind, title, side, tmp_path):
    model, rng = model_of(name), np.random.default_rng(3)
    values = {}
    for path, (shape, dtype) in twins.expected(model).items():
        scale = 0.2 if len(shape) == 1 else 1 / np.prod(shape[:-1]) ** 0.5
        values[path] = (rng.normal(size=shape) * scale + path.endswith(("scale", "var"))).astype(dtype)
        if path.endswith("var"):
            values[path] = np.abs(values[path])
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(weights.export(values, models.spec(name), title), path)
    module = getattr(twins, kind)().eval()
    module.load_state_dict({n: torch.from_numpy(a) for n, a in safetensors.numpy.load_file(path).items()}, strict=True)
    x = twins.images(side)
    ours, theirs = twins.logits(model, values, x), torch_logits(module, x)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def convert_resnet(change=None, model=None, table="resnet50", **options):
    arrays = dict(arrays_of(twin("resnet50")))
    if change:
        arrays = change(arrays) or arrays
    return weights.convert(arrays, models.spec(table), twins.expected(model or twins.abstract(table)), **options)


@functools.cache
def tiny() -> object:
    return twins.abstract("resnet50", num_classes=2, stage_sizes=(1, 1, 1, 1), width=4)


def tiny_resnet() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {path: rng.random(shape, np.float32) for path, (shape, _) in twins.expected(tiny()).items()}
    return weights.export(values, models.spec("resnet50"))


def convert_tiny(arrays, prefix=None):
    return weights.convert(arrays, models.spec("resnet50"), twins.expected(tiny()), prefix=prefix)


def test_another_number_of_classes_leaves_the_head():
    values, report = convert_resnet(model=twins.abstract("resnet50", num_classes=3))
    assert set(report.initial) == {"head/kernel", "head/bias"}
    assert values.keys() == twins.expected(twins.abstract("resnet50")).keys() - report.initial.keys()
    assert "classifier in the file has another shape: head/" in str(report)
    assert set(report.left_out) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("head", [{}, {"fc.0.weight": 1, "fc.2.weight": 1}], ids=["none", "of a pretext task"])
def test_a_file_without_the_classifier(head):
    def change(arrays):
        del arrays["fc.weight"], arrays["fc.bias"]
        return arrays | {name: np.zeros((2, 2), np.float32) for name in head}

    _, report = convert_resnet(change)
    assert report.initial == dict.fromkeys(("head/kernel", "head/bias"), "the file has no classifier")


def test_half_a_classifier_is_none():
    _, report = convert_resnet(lambda arrays: arrays.pop("fc.bias") is None)
    assert set(report.initial) == {"head/kernel", "head/bias"}


def test_new_parts_of_dala_resnet_keep_their_initial_values():
    for attention in ("none", "layer4", "layer4_blocks"):
        for head in ("linear", "dual"):
            model = twins.abstract("dala_resnet50", attention=attention, head=head)
            values, report = convert_resnet(model=model, table="dala_resnet50")
            assert all("attention" in path or "head/dense" in path for path in report.initial)
            assert values.keys() | report.initial.keys() == twins.expected(model).keys()
            assert len(values) == 265 + 2 * (head == "linear") == report.loaded
            assert ("fc.weight" in report.left_out) == (head == "dual")
            assert bool(report.initial) == (attention != "none" or head == "dual")


@pytest.mark.parametrize("kind", ["torchvision_swin", "timm_swin"])
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("resnet", [True, False])
def test_ldcsf_takes_the_first_stages_of_a_swin(kind, stages, resnet):
    module = getattr(twins, kind)(depths=(2, 2, 3, 2))
    options = {"embed_dim": 12, "depths": (2, 2, 3)[:stages], "heads": (1, 2, 4)[:stages], "resnet": resnet}
    model = twins.abstract("ldcsf", **options)
    values, report = weights.convert(arrays_of(module), models.spec("ldcsf"), twins.expected(model))
    taken = {p for p in twins.expected(model) if p.startswith(("patch_embed/", "stages/", "merges/"))}
    assert values.keys() == taken
    assert all(p.startswith(("ldc/", "fr/", "resnet/", "head/", "norm/")) for p in report.initial)
    assert "norm.weight" in report.left_out


def test_a_larger_swin_is_not_cut_down_for_ldcsf():
    module = twins.torchvision_swin(depths=(2, 2, 5, 2))
    model = twins.abstract("ldcsf", embed_dim=12, depths=(2, 2, 3), heads=(1, 2, 4))
    with pytest.raises(MismatchError) as caught:
        weights.convert(arrays_of(module), models.spec("ldcsf"), twins.expected(model))
    assert {name.split(" ")[0][:12] for name in caught.value.unexpected} == {"features.5.3", "features.5.4"}
    assert not caught.value.missing


def test_every_difference_is_reported_at_once():
    def change(arrays):
        arrays["layer1.0.conv1.weight"] = np.zeros((64, 64, 3, 3), np.float32)
        arrays["layer1.0.bn1.bias"] = np.zeros(64, np.int64)
        arrays["layer9.0.weight"] = arrays.pop("bn1.weight")
        del arrays["layer4.2.conv3.weight"]

    with pytest.raises(MismatchError) as caught:
        convert_resnet(change, source="some.pth")
    error = caught.value
    assert error.missing == ("bn1.weight (64,)", "layer4.2.conv3.weight (2048, 512, 1, 1)")
    assert error.unexpected == ("layer9.0.weight (64,)",)
    assert error.misshapen == (
        "layer1.0.bn1.bias is int64, the model has floating-point numbers",
        "layer1.0.conv1.weight is (64, 64, 3, 3), the model has (64, 64, 1, 1)",
    )
    for line in (*error.missing, *error.unexpected, *error.misshapen, "some.pth", "Name weights of this architecture"):
        assert line in str(error)


def test_a_long_list_of_differences_is_cut_in_the_message_only():
    def change(arrays):
        return {name: array for name, array in arrays.items() if not name.startswith("layer3")}

    with pytest.raises(MismatchError, match="and 75 more that are missing") as caught:
        convert_resnet(change)
    assert len(caught.value.missing) == 95


def test_weights_of_another_model_are_refused_with_the_known_names():
    with pytest.raises(WeightsError, match=r"are not those of resnet50. Known are: torchvision/timm \(conv1.weight"):
        weights.convert({"a": np.zeros(1)}, models.spec("resnet50"), twins.expected(twins.abstract("resnet50")))
    with pytest.raises(WeightsError, match="not those of"):
        weights.convert(arrays_of(twin("resnet50")), models.spec(SWIN), twins.expected(swin_model()))
    with pytest.raises(MismatchError):
        weights.convert(
            arrays_of(twins.torchvision_swin()), models.spec(SWIN), twins.expected(swin_model(depths=(2, 2, 2)))
        )


@pytest.mark.parametrize("prefix", ["module.pre.", "_orig_mod.", "module._orig_mod.", "feature_extractor.", "resnet.",
                                    "base_model.", "visual.trunk.", "encoder_q.", "x/y."])  # fmt: skip
def test_any_prefix_is_found_and_reported(prefix):
    arrays = tiny_resnet()
    plain, _ = convert_tiny(arrays)
    values, report = convert_tiny({prefix + name: array for name, array in arrays.items()} | {"queue": np.zeros(2)})
    assert report.prefix == prefix
    assert f"behind {prefix!r}" in str(report)
    assert report.left_out == ("queue",)
    assert all((values[path] == plain[path]).all() for path in plain)


def test_nearly_all_names_are_enough_for_a_prefix_but_not_for_the_weights():
    arrays = {f"module.pre.{name}": array for name, array in tiny_resnet().items() if name != "bn1.weight"}
    with pytest.raises(MismatchError, match=r"behind 'module\.pre\.'.*\n  missing module\.pre\.bn1\.weight"):
        convert_tiny(arrays)


def test_the_network_of_the_model_s_size_is_chosen_beside_one_of_another_size():
    small, large = tiny_resnet(), {name: np.repeat(array, 2, axis=0) for name, array in tiny_resnet().items()}
    arrays = {f"student.backbone.{name}": a for name, a in large.items()}
    _, report = convert_tiny(arrays | {f"teacher.backbone.{name}": a for name, a in small.items()})
    assert report.prefix == "teacher.backbone."


def test_the_beginning_of_a_prefix_chooses_between_networks():
    plain = tiny_resnet()
    arrays = {f"{who}.backbone.{name}": a for who in ("student", "teacher") for name, a in plain.items()}
    with pytest.raises(WeightsError, match=r"--config.model.pretrained_prefix=PREFIX.*: 'student.backbone.', 'teacher"):
        convert_tiny(arrays)
    for chosen in ("student.", "student.backbone."):
        assert convert_tiny(arrays, prefix=chosen)[1].prefix == "student.backbone."


def test_a_classifier_does_not_decide_between_networks():
    plain = tiny_resnet()
    headless = {name: array for name, array in plain.items() if not name.startswith("fc.")}
    with pytest.raises(WeightsError, match=r"'encoder_k\.', 'encoder_q\.'"):
        convert_tiny(
            {f"encoder_q.{n}": a for n, a in plain.items()} | {f"encoder_k.{n}": a for n, a in headless.items()}
        )


def test_a_network_beside_the_backbone_is_left_out_and_reported():
    def change(arrays):
        renamed = {"backbone." + name: array for name, array in arrays.items()}
        return renamed | {"head.mlp.0.weight": np.zeros((2, 2), np.float32)}

    _, report = convert_resnet(change)
    assert "head.mlp.0.weight" in report.left_out
    assert "not needed: head.mlp.0.weight" in str(report)


def test_two_networks_need_a_choice():
    def change(arrays):
        return {f"{who}.{name}": a + (who == "student") for who in ("teacher", "student") for name, a in arrays.items()}

    with pytest.raises(WeightsError, match=r"several such networks.*--prefix=PREFIX.*'student.', 'teacher.'"):
        convert_resnet(change)
    values, _ = convert_resnet(change, prefix="student.")
    np.testing.assert_array_equal(values["bn1/bias"], arrays_of(twin("resnet50"))["bn1.bias"] + 1)
    with pytest.raises(WeightsError, match=r"behind 'net.'"):
        convert_resnet(change, prefix="net.")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16, np.float64])
def test_values_that_are_not_finite_are_refused_by_name(bad, dtype):
    def change(arrays):
        arrays["layer1.0.bn1.weight"] = arrays["layer1.0.bn1.weight"].astype(dtype)
        arrays["layer1.0.bn1.weight"][5] = bad

    with pytest.raises(WeightsError, match=r"some.pth: NaN or infinite values in layer1.0.bn1.weight\."):
        convert_resnet(change, source="some.pth")


def test_a_number_too_large_for_float32_is_refused():
    def change(arrays):
        arrays["bn1.bias"] = np.full(64, 1e300)

    with pytest.raises(WeightsError, match=r"infinite values in bn1.bias"):
        convert_resnet(change)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_half_precision_becomes_single(dtype):
    values, _ = convert_resnet(lambda arrays: {name: array.astype(dtype) for name, array in arrays.items()})
    reference = arrays_of(twin("resnet50"))["conv1.weight"].astype(dtype).astype(np.float32).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(values["conv1/kernel"], reference)
    assert {value.dtype for value in values.values()} == {np.dtype(np.float32)}


def test_export_refuses_parameters_without_a_name():
    model = twins.abstract("dala_resnet50")
    values = {path: np.zeros(shape, np.float32) for path, (shape, _) in twins.expected(model).items()}
    with pytest.raises(WeightsError, match=r"no names for attention/fc1/bias.*use --naming=histojax"):
        weights.export(values, models.spec("dala_resnet50"))
    arrays = weights.export(values, models.spec("dala_resnet50"), leave_out_new=True)
    assert len(arrays) == 265
    with pytest.raises(WeightsError, match="no naming 'keras'; known: torchvision/timm"):
        weights.export(values, models.spec("dala_resnet50"), "keras")


def test_templates_are_inverted_exactly():
    template = Template("features.{i*2+1}.{j}.w")
    assert template.parse("features.5.3.w") == {"i": 2, "j": 3}
    assert template.format({"i": 2, "j": 3}) == "features.5.3.w"
    for name in ("features.4.3.w", "features.0.3.w", "features.5.3.w.x", "features.5x3.w", "features.05.3.w"):
        assert template.parse(name) is None
    assert Template("layers.{i+1}.x").parse("layers.0.x") is None
    assert Template("a.{i}.{i}").parse("a.1.2") is None


@pytest.mark.parametrize("name", models.names())
def test_no_two_rules_of_a_naming_cover_the_same_array(name):
    for naming in models.spec(name).namings:
        numbers = dict.fromkeys("ij", 1)
        paths = [rule.path_template.format(numbers) for rule in naming.rules]
        names = [template.format(numbers) for rule in naming.rules for template in rule.name_templates]
        assert len(set(paths)) == len(paths)
        assert len(set(names)) == len(names), naming.title
