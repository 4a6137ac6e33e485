"""Other opsets: the same results, or a refusal that names the operator and the lowest opset that has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.formats.profiles import ORT_CPU
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.onnx_passes.opset import convert_opset, plan_opset
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.workload.session import open_session

X = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)


def parsed(body: str, **constants: np.ndarray | onnx.TensorProto) -> ir.Model:
    """Return a model of opset 21 with input x (2, 8) and output y."""
    header = '<ir_version: 10, opset_import: ["": 21]> m (float[2, 8] x) => (float[A, B] y)'
    model = onnx.parser.parse_model(f"{header} {{ {body} }}")
    for name, value in constants.items():
        model.graph.initializer.append(
            value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, name)
        )
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))


def converted(model: ir.Model, opset: int) -> onnx.ModelProto:
    plan_opset(model, opset)
    convert_opset(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert [(one.domain, one.version) for one in proto.opset_import] == [("", opset)]
    return proto


def result(model: onnx.ModelProto, x: np.ndarray = X) -> np.ndarray:
    session = open_session(model.SerializeToString(), "the model", threads=1, fuse=False)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        ("y = Gelu(x)", "Erf"),
        ('y = Gelu <approximate = "tanh"> (x)', "Tanh"),
        ("y = ReduceMean <keepdims = 1> (x, axes)", "ReduceMean"),
        ("y = ReduceL2 (x, axes)", "ReduceL2"),
        ("y = Cast <to = 1, saturate = 1> (x)", "Cast"),
    ],
)
def test_operators_of_later_opsets_are_written_with_earlier_ones(body: str, operator: str) -> None:
    axes = {"axes": np.array([1], np.int64)} if "axes" in body else {}
    expected = result(ir.to_proto(parsed(body, **axes)))
    model = converted(parsed(body, **axes), 17)
    assert operator in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(result(model), expected, atol=1e-6)


def test_an_operator_without_an_earlier_form_is_refused_with_the_lowest_opset() -> None:
    int4 = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [8], list(range(-4, 4)))
    model = parsed("d = DequantizeLinear(w, s) y = Mul(x, d)", w=int4, s=np.float32(0.5))
    plan_opset(model, 20)
    with pytest.raises(StageError, match=r"opset 20 has no DequantizeLinear of INT4.*opset 21 has it") as caught:
        convert_opset(model)
    assert "`opset: 21`" in (caught.value.hint or "")
    groups = np.ones(2, np.float32)
    body = "r = Reshape(x, shape) n = GroupNormalization <num_groups = 2> (r, g, b) y = Flatten(n)"
    model = parsed(body, shape=np.array([2, 2, 4], np.int64), g=groups, b=groups)
    plan_opset(model, 18)
    with pytest.raises(StageError, match="opset 18 has no GroupNormalization"):
        convert_opset(model)


@pytest.fixture(scope="module")
def quantized(
    tiny_session_graph: ModelGraph, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Callable[..., StageContext]], Path]:
    """Return a function that writes the file of a quantized two-block ViT at opset 21, once."""
    path = tmp_path_factory.mktemp("opset") / "model.onnx"

    def write(make_context: Callable[..., StageContext]) -> Path:
        if not path.exists():
            config = Ptq(rounding="nearest", smooth=False, attention=True)
            context = make_context(tiny_session_graph, calibration=16)
            export_onnx(PtqStage(config).apply(tiny_session_graph, context).graph, path, ORT_CPU)
        return path

    return write


@pytest.mark.parametrize("opset", [17, 18, 19, 20, 22, 23])
def test_a_quantized_model_computes_the_same_at_every_opset(
    quantized: Callable[..., Path], digits_context: Callable[..., StageContext], opset: int
) -> None:
    path = quantized(digits_context)
    images = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)
    found = result(converted(ir.load(path), opset), images)
    expected = result(onnx.load(path), images)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()  # Erf may move a value to the next integer
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
