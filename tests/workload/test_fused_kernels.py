"""Fusion of nodes into kernels, and the bytes that each kernel reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vitslim.workload import Workload, read_workload


def types(workload: Workload) -> list[list[str]]:
    return [[workload.operators[i].type for i in kernel.operators] for kernel in workload.kernels]


def test_a_small_vit_has_the_usual_fused_kernels(tiny_onnx: Path) -> None:
    workload = read_workload(tiny_onnx, 2)
    assert len(workload.kernels) == 4 + 7 * 2
    roles = [workload.operators[kernel.operators[0]].role for kernel in workload.kernels]
    assert roles.count("QK^T") == 2
    assert "PV" not in roles
    attention = next(k for k, role in zip(workload.kernels, roles, strict=True) if role == "QK^T")
    assert attention.read == {32: 2 * 17 * 3 * 64}
    assert attention.written == {32: 2 * 17 * 64}
    proj = workload.kernels[roles.index("attn.proj")]
    assert proj.read[32] == 2 * 17 * 64 * 2 + 64, "its input, the residual, and the bias"
    inside = [i for kernel in workload.kernels for i in kernel.operators]
    assert len(inside) == len(set(inside))
    outside = {o.op for i, o in enumerate(workload.operators) if i not in set(inside)}
    assert outside == {"movement", "elementwise"}, "views, and the scale of QK^T, which the attention kernel applies"


def test_operators_count_the_bytes_of_their_operands(tiny_onnx: Path) -> None:
    workload = read_workload(tiny_onnx)
    fc1 = next(o for o in workload.operators if o.role == "mlp.fc1")
    assert (fc1.read_bytes, fc1.constant_bytes, fc1.written_bytes) == (4 * 17 * 64, 4 * 64 * 256, 4 * 17 * 256)
    assert workload.bytes == sum(o.read_bytes + o.constant_bytes + o.written_bytes for o in workload.operators)


def test_a_result_with_several_readers_is_not_fused(write_graph: Callable[..., Path]) -> None:
    weight = np.ones((8, 8), np.float32)
    alone = read_workload(write_graph("h = MatMul(x, w)  y = Relu(h)", output="float[N, 8] y", w=weight))
    assert types(alone) == [["MatMul", "Relu"]]
    text = "h = MatMul(x, w)  r = Relu(h)  y = Add(h, r)"
    shared = read_workload(write_graph(text, output="float[N, 8] y", w=weight))
    assert types(shared) == [["MatMul"], ["Relu", "Add"]]
    assert shared.kernels[1].read == {32: 8}


def test_values_between_quantize_and_dequantize_count_as_integers(write_graph: Callable[..., Path]) -> None:
    text = """h = Relu(x)  q = QuantizeLinear(h, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(d, w)"""
    constants = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((8, 4), np.float32)}
    workload = read_workload(
        write_graph(text, output="float[N, 4] y", **{k: np.asarray(v) for k, v in constants.items()})
    )
    relu, matmul = workload.kernels
    assert relu.written == {8: 8}
    assert matmul.read == {8: 8}


def test_masked_attention_is_one_kernel(write_graph: Callable[..., Path]) -> None:
    text = """a = Reshape(x, shape)  t = Transpose<perm = [0, 2, 1]>(a)  n = Mul(a, scale)  s = MatMul(n, t)
    m = Add(s, mask)  p = Softmax(m)  v = MatMul(p, a)  y = Relu(v)"""
    path = write_graph(text, output="float[N, 2, 4] y", shape=np.array([-1, 2, 4]), scale=np.float32(0.5).reshape(()),
                       mask=np.zeros((2, 2), np.float32))  # fmt: skip
    found = types(read_workload(path, 3))
    assert len(found) == 1
    assert found[0][:2] == ["MatMul", "MatMul"]


def test_unknown_operators_have_a_share_of_the_bytes(write_graph: Callable[..., Path]) -> None:
    text = "z = Reshape(x, shape)  a = Det(z)  y = Relu(x)"
    workload = read_workload(write_graph(text, output="float[N, 8] y", shape=np.array([-1, 2, 2])))
    assert workload.unknown_bytes == {"Det": 4 * (8 + 2)}
    assert 0 < workload.unknown_shares()["Det"] < 1
    assert [kernel.unknown for kernel in workload.kernels] == ["Det", ""]


def test_einsum_and_transposed_convolution_are_gemms(write_graph: Callable[..., Path]) -> None:
    einsum = read_workload(
        write_graph('a = Reshape(x, shape)  y = Einsum<equation = "nij,nkj->nik">(a, a)', output="float[N, 2, 2] y",
                    shape=np.array([-1, 2, 4])), 3
    )  # fmt: skip
    (gemm,) = [o for o in einsum.operators if o.macs]
    assert (gemm.op, gemm.m, gemm.n, gemm.k, gemm.count) == ("attention", 2, 2, 4, 3)
    text = "i = Reshape(x, shape)  y = ConvTranspose<strides = [2, 2]>(i, w)"
    path = write_graph(text, output="float[N, 3, 4, 4] y", w=np.ones((2, 3, 2, 2), np.float32),
                       shape=np.array([-1, 2, 2, 2]))  # fmt: skip
    (gemm,) = [o for o in read_workload(path).operators if o.macs]
    assert (gemm.op, gemm.macs) == ("conv", 4 * 12 * 2)
