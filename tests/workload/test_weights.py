"""Bits and the 2:4 pattern of the constant operands of GEMMs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vitslim.workload import Operator, read_workload

QUANTIZED_INPUT = "q = QuantizeLinear(x, s, zero)  d = DequantizeLinear(q, s, zero)"


def integers(rows: int, columns: int, kept_per_four: int) -> np.ndarray:
    """INT8 (rows, columns) with `kept_per_four` nonzero values in every run of four rows."""
    generator = np.random.default_rng(0)
    values = generator.integers(1, 100, (rows, columns)).astype(np.int8)
    order = generator.random((rows // 4, 4, columns)).argsort(axis=1).reshape(rows, columns)
    return np.where(order < kept_per_four, values, 0).astype(np.int8)


def scales(**more: np.ndarray) -> dict[str, np.ndarray]:
    return {"s": np.float32(0.1), "zero": np.int8(0), "sw": np.full(6, 0.1, np.float32), **more}


def gemm_of(path: Path) -> Operator:
    workload = read_workload(path)
    found = [o for o in workload.operators if o.op in {"gemm", "conv"}]
    assert len(found) == 1
    return found[0]


def test_an_int8_weight_with_two_four_is_recognized(write_graph: Callable[..., Path]) -> None:
    text = f"{QUANTIZED_INPUT}  f = DequantizeLinear<axis = 1>(w, sw)  y = MatMul(d, f)"
    path = write_graph(text, **scales(w=integers(8, 6, 2)))
    gemm = gemm_of(path)
    assert (gemm.m, gemm.n, gemm.k) == (1, 6, 8)
    assert (gemm.weight_bits, gemm.activation_bits, gemm.sparsity) == (8, 8, "2:4")
    assert gemm.bops == 8 * 6 * 64 // 2
    workload = read_workload(path)
    assert workload.params == 48
    assert [o.type for o in workload.operators if o.op == "quantize"] == ["QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize("kept", [3, 4])
def test_denser_weights_have_no_pattern(write_graph: Callable[..., Path], kept: int) -> None:
    text = f"{QUANTIZED_INPUT}  f = DequantizeLinear<axis = 1>(w, sw)  y = MatMul(d, f)"
    assert gemm_of(write_graph(text, **scales(w=integers(8, 6, kept)))).sparsity == ""


def test_half_of_zeros_is_not_yet_the_pattern(write_graph: Callable[..., Path]) -> None:
    dense_then_empty = np.repeat(np.array([[1], [0]], np.int8), 4, axis=0) * np.ones((8, 6), np.int8)
    text = "f = DequantizeLinear<axis = 1>(w, sw)  y = MatMul(x, f)"
    gemm = gemm_of(write_graph(text, **scales(w=dense_then_empty)))
    assert (gemm.sparsity, gemm.weight_bits, gemm.activation_bits) == ("", 8, 32)


def test_the_pattern_is_checked_along_the_reduction_only(write_graph: Callable[..., Path]) -> None:
    along_outputs = integers(8, 8, 2).T.copy()
    assert not (np.count_nonzero(along_outputs.reshape(2, 4, 8), axis=1) <= 2).all()
    constants = {"w": along_outputs.astype(np.float32)}
    assert gemm_of(write_graph("y = MatMul(x, w)", **constants)).sparsity == ""
    assert gemm_of(write_graph("t = Transpose<perm = [1, 0]>(w)  y = MatMul(x, t)", **constants)).sparsity == "2:4"
    assert gemm_of(write_graph("y = Gemm<transB = 1>(x, w)", **constants)).sparsity == "2:4"


@pytest.mark.parametrize(
    ("kept", "largest", "bits", "sparsity"),
    [("pairs", 15, 4, "2:4"), ("pairs", 255, 8, ""), ("2:4", 15, 4, ""), ("2:4", 255, 8, "2:4")],
)
def test_four_bit_operands_need_pairs_and_others_2_4(
    write_graph: Callable[..., Path], kept: str, largest: int, bits: int, sparsity: str
) -> None:
    column = np.array([1, 2, 3, 4, 0, 0, 0, 0] if kept == "pairs" else [1, 0, 2, 0, 0, 3, 0, 4])
    weight = helper.make_tensor("w", TensorProto.INT4, [8, 6], np.repeat(column, 6).tolist())
    text = (
        "q = QuantizeLinear(x, sx, zx)  c = Clip(q, low, high)  a = DequantizeLinear(c, sx, zx)  "
        "i = Cast<to = 3>(w)  f = DequantizeLinear<axis = 1>(i, sw)  y = MatMul(a, f)"
    )
    constants = {**scales(), "w": weight, "sx": np.float32(1), "zx": np.uint8(0), "low": np.uint8(0),
                 "high": np.uint8(largest)}  # fmt: skip
    gemm = gemm_of(write_graph(text, **constants))
    assert (gemm.weight_bits, gemm.activation_bits, gemm.sparsity) == (4, bits, sparsity)


def test_both_operands_of_an_attention_matmul_have_the_bits_of_their_clips(write_graph: Callable[..., Path]) -> None:
    text = (
        "q = QuantizeLinear(x, s, zx)  c = Clip(q, low, h4)  a = DequantizeLinear(c, s, zx)  "
        "p = QuantizeLinear(x, s, zx)  d = Clip(p, low, h6)  b = DequantizeLinear(d, s, zx)  "
        "t = Transpose<perm = [1, 0]>(b)  y = MatMul(a, t)"
    )
    constants = {"zx": np.uint8(0), "low": np.uint8(0), "h4": np.uint8(15), "h6": np.uint8(63)}
    path = write_graph(text, s=np.float32(0.1), **constants)
    matmul = next(o for o in read_workload(path).operators if o.op == "attention")
    assert (matmul.activation_bits, matmul.weight_bits) == (4, 6)


def test_an_int4_weight_before_a_cast_has_four_bits(write_graph: Callable[..., Path]) -> None:
    weight = helper.make_tensor("w", TensorProto.INT4, [8, 6], (integers(8, 6, 2) % 8).reshape(-1).tolist())
    text = "c = Cast<to = 3>(w)  f = DequantizeLinear<axis = 1>(c, sw)  y = MatMul(x, f)"
    gemm = gemm_of(write_graph(text, **{**scales(), "w": weight}))
    assert (gemm.weight_bits, gemm.sparsity) == (4, "2:4")


def test_integers_at_the_zero_point_are_zeros(write_graph: Callable[..., Path]) -> None:
    unsigned = (integers(8, 6, 2).astype(np.int16) + 128).astype(np.uint8)
    text = "f = DequantizeLinear<axis = 1>(w, sw, zw)  y = MatMul(x, f)"
    gemm = gemm_of(write_graph(text, **scales(w=unsigned, zw=np.full(6, 128, np.uint8))))
    assert (gemm.weight_bits, gemm.sparsity) == (8, "2:4")


def test_a_weight_with_its_quantize_node_has_the_quantized_bits(write_graph: Callable[..., Path]) -> None:
    text = "q = QuantizeLinear<axis = 1>(w, sw, zw)  f = DequantizeLinear<axis = 1>(q, sw, zw)  y = MatMul(x, f)"
    weight = integers(8, 6, 2).astype(np.float32)
    gemm = gemm_of(write_graph(text, **scales(w=weight, zw=np.zeros(6, np.int8))))
    assert (gemm.weight_bits, gemm.sparsity) == (8, "2:4")


def test_integer_matmuls_are_gemms(write_graph: Callable[..., Path]) -> None:
    text = "q = QuantizeLinear(x, s, zero)  y = MatMulInteger(q, w)"
    gemm = gemm_of(write_graph(text, output="int32[N, 6] y", **scales(w=integers(8, 6, 2))))
    assert (gemm.macs, gemm.weight_bits, gemm.activation_bits, gemm.sparsity) == (48, 8, 8, "2:4")


def test_the_weight_may_be_on_the_left(write_graph: Callable[..., Path]) -> None:
    text = "t = Transpose(x)  y = MatMul(w, t)"
    gemm = gemm_of(write_graph(text, output="float[5, N] y", w=np.ones((5, 8), np.float32)))
    assert (gemm.m, gemm.n, gemm.k, gemm.weight) == (1, 5, 8, True)


def test_a_grouped_convolution_is_one_gemm_per_group(write_graph: Callable[..., Path]) -> None:
    text = "i = Reshape(x, shape)  y = Conv<group = 2, pads = [1, 1, 1, 1]>(i, w)"
    path = write_graph(text, output="float[N, 4, 2, 2] y", w=np.ones((4, 1, 3, 3), np.float32),
                       shape=np.array([-1, 2, 2, 2]))  # fmt: skip
    gemm = gemm_of(path)
    assert (gemm.op, gemm.m, gemm.n, gemm.k, gemm.count) == ("conv", 4, 2, 9, 2)
    assert gemm.macs == 4 * 4 * 9


def test_layer_names_come_from_the_weight_or_from_vitslim_metadata(write_graph: Callable[..., Path]) -> None:
    path = write_graph("h = MatMul(x, val_3)  y = Add(h, x)", output="float[N, 8] y", val_3=np.eye(8, dtype=np.float32))
    assert gemm_of(path).role == "MatMul"
    model = onnx.load(path)
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "blocks.7.mlp.fc1.weight"
    onnx.save(model, path)
    assert (gemm_of(path).layer, gemm_of(path).role) == ("blocks.7.mlp.fc1", "mlp.fc1")
    model.graph.node[0].metadata_props.add(key="vitslim.layer", value="blocks.2.attn.proj.weight")
    onnx.save(model, path)
    assert (gemm_of(path).layer, gemm_of(path).role) == ("blocks.2.attn.proj", "attn.proj")
