"""ONNX files: parameters that the exporter renamed get their names back, or the reason is given why they cannot."""

import pathlib

import numpy as np
import onnx
import pytest

from histojax import models, weights
from histojax.weights import WeightsError
from histojax.weights.fitting import fit
from tests.helpers import twins

MODEL = "vit_small_patch14_dinov2"
OPTIONS = {"image_size": 28, "embed_dim": 8, "depth": 1, "heads": 2}


def node(operator: str, module: str, *inputs: str) -> onnx.NodeProto:
    place = "/" + module.replace(".", "/")
    return onnx.helper.make_node(operator, ["x", *inputs], [f"{place}/out"], name=f"{place}/{operator}")


def write(path: pathlib.Path, arrays: dict[str, np.ndarray], nodes: list[onnx.NodeProto]) -> pathlib.Path:
    tensors = [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], tensors)), path)
    return path


def test_renamed_parameters_of_a_vision_transformer_are_found(tmp_path: pathlib.Path) -> None:
    expected = twins.expected(twins.abstract(MODEL, num_classes=2, **OPTIONS))
    rng = np.random.default_rng(0)
    values = {path: rng.random(shape, np.float32) for path, (shape, _) in expected.items() if "head" not in path}
    stored, nodes = {}, []
    exported = weights.export(values, models.spec(MODEL), "Hugging Face DINOv2, without head")
    for number, (name, array) in enumerate(exported.items()):
        module, _, leaf = f"backbone.{name}".rpartition(".")
        if leaf == "position_embeddings":
            stored |= {"onnx::Reshape_901": array[:, 1:], "onnx::Concat_900": array[:, :1]}
            nodes += [node("Reshape", module, "onnx::Reshape_901"), node("Concat", module, "onnx::Concat_900")]
        elif leaf == "weight" and array.ndim == 2:
            stored[f"onnx::MatMul_{number}"] = array.T
            nodes.append(node("MatMul", module, f"onnx::MatMul_{number}"))
        else:
            stored[f"{module}.{leaf}"] = array
    assert len(nodes) == 2 + 6
    contents = weights.inspect(write(tmp_path / "m.onnx", stored | {"onnx::Mul_7": np.ones(2)}, nodes))
    assert contents.left_out == ("onnx::Mul_7",)
    found, report = fit(contents, MODEL, expected)
    assert found.keys() == values.keys()
    assert "behind 'backbone.'" in report
    for path, value in values.items():
        np.testing.assert_array_equal(found[path], value, path)


def test_what_cannot_be_read_is_refused_with_its_reason(tmp_path: pathlib.Path) -> None:
    kernel = np.ones((4, 3, 7, 7), np.float32)
    folded = write(tmp_path / "f.onnx", {"onnx::Conv_5": kernel}, [node("Conv", "conv1", "onnx::Conv_5")])
    with pytest.raises(WeightsError, match=r"f\.onnx: its batch norms were folded into the convolutions"):
        weights.read(folded)
    (tmp_path / "d.onnx").write_bytes(b"\x08\x01nothing")
    with pytest.raises(WeightsError, match=r"d\.onnx: it is cut short, damaged or no ONNX file"):
        weights.read(tmp_path / "d.onnx")
    whole = onnx.load(write(tmp_path / "w.onnx", {"conv1.weight": kernel}, []))
    onnx.save(whole, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    with pytest.raises(WeightsError, match=r"e\.onnx: its tensors lie in another file\. Write one file: python -c"):
        weights.read(tmp_path / "e.onnx")
    assert weights.read(tmp_path / "w.onnx").keys() == {"conv1.weight"}
