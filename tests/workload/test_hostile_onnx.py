"""Unusual and hostile graphs are refused with an error that names the cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vitslim.errors import InputError
from vitslim.workload import read_workload

FLOAT = TensorProto.FLOAT


def save(path: Path, nodes: list[onnx.NodeProto], shape: list[int | str] | None, *weights: onnx.TensorProto) -> Path:
    value = helper.make_tensor_value_info("x", FLOAT, shape)
    graph = helper.make_graph(nodes, "g", [value], [helper.make_tensor_value_info("y", FLOAT, None)], list(weights))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def assert_refused(path: Path, words: str, batch: int = 1) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_workload(path, batch)
    assert caught.value.exit_code == 5
    assert caught.value.hint


def test_control_flow_is_refused(tmp_path: Path) -> None:
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "b", [],
                               [helper.make_tensor_value_info("z", FLOAT, None)])  # fmt: skip
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    node = helper.make_node("If", ["c"], ["y"], name="gate", then_branch=branch, else_branch=branch)
    assert_refused(save(tmp_path / "if.onnx", [node], ["N", 8], condition), "If 'gate' is control flow")


@pytest.mark.parametrize(("shape", "words"), [
    (None, "has no shape"), (["N", 0], "must be positive"), (["N", -3], "must be positive"),
    (["N", "H"], "only the batch of input"),
    ([0, 8], "fixed batch size of 0"),
])  # fmt: skip
def test_inputs_need_a_positive_static_shape(tmp_path: Path, shape: list[int | str] | None, words: str) -> None:
    assert_refused(save(tmp_path / "odd.onnx", [helper.make_node("Relu", ["x"], ["y"])], shape), words)


def test_a_matmul_with_a_dimension_of_zero_is_refused(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", FLOAT, [8, 0], [])
    path = save(tmp_path / "zero.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], ["N", 8], weight)
    assert_refused(path, "MatMul 'fc' has a dimension of zero")


def test_a_matmul_of_excessive_size_is_refused(tmp_path: Path) -> None:
    side = 2**40
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), helper.make_node("MatMul", ["t", "x"], ["y"])]
    assert_refused(save(tmp_path / "huge.onnx", nodes, ["N", 1, side]), "exceed 2")


def test_the_declared_shape_of_a_custom_operator_is_used(write_graph: Callable[..., Path]) -> None:
    weight = np.ones((8, 4), np.float32)
    path = write_graph("a = com.microsoft.Strange(x)  y = MatMul(a, w)", output="float[N, 4] y", w=weight)
    assert_refused(path, "shape of 'a'")
    model = onnx.load(path)
    model.graph.value_info.append(helper.make_tensor_value_info("a", FLOAT, ["N", 8]))
    onnx.save(model, path)
    workload = read_workload(path, 3)
    assert workload.macs == 3 * 8 * 4
    assert workload.unknown == {"com.microsoft.Strange": 1}


def test_an_unknown_shape_of_an_elementwise_operator_is_refused(write_graph: Callable[..., Path]) -> None:
    assert_refused(write_graph("a = com.microsoft.Strange(x)  y = Relu(a)", output="float[N, 8] y"), "shape of 'y'")
