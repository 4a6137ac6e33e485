from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from vitslim.backends.registry import Simulated, parse_backend
from vitslim.workload import Operator, Workload, read_workload


def gemms(workload: Workload) -> Counter[tuple[str, str, int, int, int]]:
    counts: Counter[tuple[str, str, int, int, int]] = Counter()
    for o in workload.operators:
        if o.macs:
            counts[o.op, o.role, o.m, o.n, o.k] += o.count
    return counts


def test_the_gemms_of_a_small_vit_are_counted(tiny_onnx: Path) -> None:
    assert gemms(read_workload(tiny_onnx)) == {
        ("conv", "patch_embed.proj", 16, 64, 192): 1,
        ("gemm", "attn.qkv", 17, 192, 64): 2,
        ("attention", "QK^T", 17, 17, 32): 4,
        ("attention", "PV", 17, 32, 17): 4,
        ("gemm", "attn.proj", 17, 64, 64): 2,
        ("gemm", "mlp.fc1", 17, 256, 64): 2,
        ("gemm", "mlp.fc2", 17, 64, 256): 2,
        ("gemm", "head", 1, 10, 64): 1,
    }


def test_the_batch_goes_to_the_rows_of_layers_and_the_count_of_attention_gemms(tiny_onnx: Path) -> None:
    one, four = read_workload(tiny_onnx, 1), read_workload(tiny_onnx, 4)
    assert four.batch == 4
    assert four.macs == 4 * one.macs
    assert gemms(four)["gemm", "attn.qkv", 68, 192, 64] == 2
    assert gemms(four)["attention", "QK^T", 17, 17, 32] == 16


def test_every_node_is_an_operator_with_a_layer(tiny_onnx: Path) -> None:
    workload = read_workload(tiny_onnx)
    nodes = onnx.load(tiny_onnx).graph.node
    assert workload.unknown == {}
    assert len(workload.operators) + workload.folded == len(nodes)
    kinds = Counter(o.op for o in workload.operators)
    assert (kinds["norm"], kinds["softmax"]) == (5, 2)
    assert {o.layer for o in workload.operators if o.role == "mlp.fc2"} == {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2"}
    softmax = next(o for o in workload.operators if o.op == "softmax")
    assert softmax.elements == 2 * 17 * 17
    assert [o.elements for o in workload.operators if o.type == "Gelu"] == [17 * 256] * 2


def test_floating_point_operands_have_32_bits_and_no_pattern(tiny_onnx: Path) -> None:
    workload = read_workload(tiny_onnx)
    assert {(o.weight_bits, o.activation_bits, o.sparsity) for o in workload.operators if o.macs} == {(32, 32, "")}
    assert workload.bops == 32 * 32 * workload.macs


def test_macs_of_deit_tiny_are_exact(deit_tiny_onnx: Path) -> None:
    workload = read_workload(deit_tiny_onnx)
    assert workload.macs == 1_253_683_200
    assert not workload.unknown


@pytest.mark.slow
@pytest.mark.parametrize(("name", "giga"), [("deit_small_patch16_224", 4.599), ("deit_base_patch16_224", 17.564)])
def test_macs_of_larger_deits_are_those_of_the_papers(
    export_timm: Callable[[str, dict[str, Any]], Path], name: str, giga: float
) -> None:
    assert read_workload(export_timm(name, {})).macs / 1e9 == pytest.approx(giga, abs=5e-4)


@pytest.mark.slow
def test_swin_windows_are_counted(export_timm: Callable[[str, dict[str, Any]], Path]) -> None:
    workload = read_workload(export_timm("swin_tiny_patch4_window7_224", {}))
    assert not workload.unknown
    assert gemms(workload)["attention", "QK^T", 49, 49, 32] == 2 * (64 * 3) + 2 * (16 * 6) + 6 * (4 * 12) + 2 * 24


def test_a_file_quantized_by_onnx_runtime_is_read(tiny_onnx: Path, tmp_path: Path) -> None:
    quantize_dynamic(tiny_onnx, tmp_path / "dynamic.onnx", weight_type=QuantType.QInt8, per_channel=True)
    dense, quantized = read_workload(tiny_onnx, 2), read_workload(tmp_path / "dynamic.onnx", 2)
    assert quantized.macs == dense.macs
    assert not quantized.unknown
    assert {(o.weight_bits, o.activation_bits) for o in quantized.operators if o.weight} == {(8, 8)}
    assert {(o.weight_bits, o.activation_bits) for o in quantized.operators if o.op == "attention"} == {(32, 32)}
    assert quantized.params == pytest.approx(dense.params, rel=0.02)


class Squeezing(torch.nn.Module):
    """A block after token squeezing: class attention ranks tokens, removed ones are fused into the nearest kept one."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, depth=1,
                                     num_heads=2, num_classes=10)  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.vit._pos_embed(self.vit.patch_embed(images))
        prefix, patches = x[:, :1], x[:, 1:]
        order = (prefix @ patches.transpose(1, 2)).softmax(-1).squeeze(1).topk(16).indices.unsqueeze(-1)
        ordered = patches.gather(1, order.expand(-1, -1, 64))
        kept, gone = ordered[:, :6], ordered[:, 6:]
        similarity = gone @ kept.transpose(1, 2)
        hosts = (similarity == similarity.amax(-1, keepdim=True)).to(x.dtype)
        x = torch.cat((prefix, kept + hosts.transpose(1, 2) @ gone), dim=1)
        return self.vit.forward_head(self.vit.norm(self.vit.blocks(x)))


@pytest.mark.slow
def test_the_matmuls_of_token_squeezing_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "squeezed.onnx"
    torch.onnx.export(
        Squeezing().eval(), (torch.randn(2, 3, 32, 32),), dynamo=True, opset_version=21, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    ).save(path)  # fmt: skip
    for batch in (1, 3):
        found = gemms(read_workload(path, batch))
        assert found["attention", "class attention", 1, 16, 64] == batch
        assert found["attention", "activation matmul", 10, 6, 64] == batch
        assert found["attention", "activation matmul", 6, 64, 10] == batch
        assert found["attention", "QK^T", 7, 7, 32] == 2 * batch
    assert {o.type for o in read_workload(path).operators if o.op == "select"} == {"TopK", "GatherElements"}


def test_a_gelu_written_with_erf_is_one_operator(write_graph: Callable[..., Path]) -> None:
    path = write_graph(
        """root = Constant<value = float {1.41421356}> ()
        half = Constant<value = float {0.5}> ()
        one = Constant<value = float {1.0}> ()
        a = Div(x, root)
        b = Erf(a)
        c = Add(b, one)
        d = Mul(x, c)
        e = Mul(d, half)
        y = Add(e, x)""",
        output="float[N, 8] y",
    )
    workload = read_workload(path, 2)
    assert [(o.type, o.elements) for o in workload.operators] == [("Gelu", 16), ("Add", 16)]


def test_unknown_operators_are_listed(write_graph: Callable[..., Path]) -> None:
    text = "z = Reshape(x, shape)  a = Det(z)  b = com.microsoft.Strange(x)  y = Relu(x)"
    workload = read_workload(write_graph(text, output="float[N, 8] y", shape=np.array([-1, 2, 2])))
    assert workload.unknown == {"Det": 1, "com.microsoft.Strange": 1}
    assert [o.type for o in workload.operators] == ["Reshape", "Relu"]


def test_macs_and_bops_follow_from_the_sizes() -> None:
    gemm = Operator("fc", "gemm", "MatMul", m=2, n=3, k=4, count=5, weight_bits=8, activation_bits=8, sparsity="2:4")
    assert gemm.macs == 120
    assert gemm.bops == 120 * 64 // 2


def test_the_blocks_of_deit_tiny_take_their_cycles_on_a_systolic_array(deit_tiny_onnx: Path) -> None:
    backend = parse_backend("sim:systolic")
    assert isinstance(backend, Simulated)
    rows = {row.name: row for row in backend.estimate(deit_tiny_onnx, 1).rows if row.macs}
    beside = {"patch_embed.proj 196x192x768", "head 1x1000x192"}
    assert sum(row.cycles for name, row in rows.items() if name not in beside) == 347_280
    assert len(rows.keys() - beside) == 6
