"""The two squeeze operators against their definitions (TPS, section 3.2), in torch and in ONNX Runtime."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitslim.graph.ops.squeeze import (
    FUSE_INATTENTIVE,
    KEEP_TOKENS,
    SQUEEZE_TOKENS,
    fuse,
    fuse_inattentive,
    keep_tokens,
    squeeze_tokens,
)
from vitslim.graph.ops.token_scores import CLASS_ATTENTION, RECEIVED_ATTENTION, class_attention, received_attention
from vitslim.stages.export.translate import translations


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fuse_by_loops(reserved: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    """Fuse by the definition, one token at a time, in float64."""
    out = torch.empty_like(reserved, dtype=torch.float64)
    r, p = reserved.double(), pruned.double()
    cosine = torch.tensor([[float(a @ b) / ((a.norm() + 1e-6) * (b.norm() + 1e-6)) for b in r] for a in p])
    for j in range(len(r)):
        guests = [i for i in range(len(p)) if cosine[i, j] == cosine[i].max()]
        total = math.e + sum(math.exp(cosine[i, j]) for i in guests)
        out[j] = math.e / total * r[j]
        for i in guests:
            out[j] += math.exp(cosine[i, j]) / total * p[i]
    return out


def test_class_attention_is_the_class_row_of_the_attention_matrix() -> None:
    q, k = random(2, 3, 10, 4), random(2, 3, 10, 4, seed=1)
    full = torch.softmax(q @ k.transpose(-2, -1) * 0.3, dim=-1)
    for prefix in (1, 2):
        expected = full[:, :, 0].mean(1)[:, prefix:]
        torch.testing.assert_close(class_attention(q, k, 0.3, prefix), expected)


def test_received_attention_is_the_mean_of_the_columns() -> None:
    q, k = random(2, 3, 10, 4), random(2, 3, 10, 4, seed=1)
    full = torch.softmax(q @ k.transpose(-2, -1) * 0.3, dim=-1)
    for prefix in (0, 2):
        torch.testing.assert_close(received_attention(q, k, 0.3, prefix), full.mean((1, 2))[:, prefix:])


def test_baselines_by_hand() -> None:
    x = torch.tensor([[[9.0, 9], [1, 0], [0, 1], [2, 2], [4, 0]]])
    score = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    assert keep_tokens(x, score, 2).tolist() == [[[9, 9], [0, 1], [2, 2]]]
    fused = [0.1 * 1 + 0.2 * 4, 0.0]
    expected = torch.tensor([[[9.0, 9], [0, 1], [2, 2], fused]])
    torch.testing.assert_close(fuse_inattentive(x, score, 2), expected)


def test_fusion_follows_the_definition() -> None:
    reserved, pruned = random(7, 5), random(12, 5, seed=1)
    torch.testing.assert_close(fuse(reserved[None], pruned[None])[0].double(), fuse_by_loops(reserved, pruned))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 1000))
def test_weights_of_each_host_sum_to_one(hosts: int, guests: int, seed: int) -> None:
    """Tokens with one constant feature keep it only if the weights sum to one."""
    reserved, pruned = random(2, hosts, 6, seed=seed), random(2, guests, 6, seed=seed + 1)
    reserved[..., 0], pruned[..., 0] = 3.0, 3.0
    fused = fuse(reserved, pruned)
    assert fused.isfinite().all()
    torch.testing.assert_close(fused[..., 0], torch.full((2, hosts), 3.0))


def test_host_without_guests_is_unchanged_and_nothing_pruned_is_the_identity() -> None:
    reserved = torch.eye(4)[None]
    pruned = 2 * torch.eye(4)[None, :1]
    fused = fuse(reserved, pruned)
    torch.testing.assert_close(fused[:, 1:], reserved[:, 1:], rtol=0, atol=1e-7)
    torch.testing.assert_close(fused[0, 0], torch.tensor([1.5, 0, 0, 0]))
    torch.testing.assert_close(fuse(reserved, pruned[:, :0]), reserved, rtol=0, atol=1e-7)


def test_exact_tie_gives_the_guest_to_both_hosts() -> None:
    reserved = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]])
    fused = fuse(reserved, torch.tensor([[[1.0, 1.0, 0]]]))
    torch.testing.assert_close(fused[0, 0].flip(0)[1:], fused[0, 1][:2], rtol=0, atol=1e-6)
    assert fused[0, 0, 1] > 0
    assert fused[0, 1, 0] > 0


def test_zero_tokens_give_finite_results_and_gradients() -> None:
    tokens = torch.zeros(1, 6, 4, requires_grad=True)
    squeezed = squeeze_tokens(tokens, torch.zeros(1, 5), 2)
    squeezed.sum().backward()
    assert squeezed.isfinite().all()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()


def kept_indices(score: torch.Tensor, keep: int) -> torch.Tensor:
    """Return the kept tokens: each has a one-hot feature, which fusion does not change."""
    tokens = torch.eye(score.shape[1])[None].expand(len(score), -1, -1)
    return squeeze_tokens(torch.cat([tokens[:, :1], tokens], 1), score, keep)[:, 1:].argmax(-1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-45, 1e-30, 0.1, 0.1000000015, 0.5, 1.0]), min_size=1, max_size=60), st.data())
def test_highest_scores_stay_in_order_and_ties_go_to_the_lower_index(values: list[float], data: st.DataObject) -> None:
    score = torch.tensor([values])
    keep = data.draw(st.integers(1, len(values)))
    wanted = sorted(sorted(range(len(values)), key=lambda i: (-score[0, i].item(), i))[:keep])
    assert kept_indices(score, keep).tolist() == [wanted]


@pytest.mark.parametrize("tokens", [16, 33, 196, 577, 1000])
def test_equal_scores_keep_the_first_tokens(tokens: int) -> None:
    assert kept_indices(torch.full((2, tokens), 1 / tokens), tokens // 2).tolist() == [list(range(tokens // 2))] * 2


def test_prefix_passes_unchanged_and_keep_all_is_the_identity() -> None:
    x, score = random(3, 12, 8), random(3, 10, seed=1).sigmoid()
    squeezed = squeeze_tokens(x, score, 4)
    assert squeezed.shape == (3, 6, 8)
    assert torch.equal(squeezed[:, :2], x[:, :2])
    torch.testing.assert_close(squeeze_tokens(x, score, 10), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("keep", [0, -1, 11])
def test_impossible_counts_are_refused(keep: int) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {keep} of 10"):
        squeeze_tokens(random(1, 11, 4), random(1, 10), keep)


def test_gradients_are_those_of_the_function() -> None:
    x = random(1, 7, 3).double().requires_grad_()
    score = torch.linspace(0, 1, 6).double()[None]
    assert torch.autograd.gradcheck(lambda tokens: squeeze_tokens(tokens, score, 3), (x,))


class Squeeze(torch.nn.Module):
    def __init__(self, operator: Any, score: Any) -> None:
        super().__init__()
        self.operator, self.score = operator, score

    def forward(self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        squeezed: torch.Tensor = self.operator(x, self.score(q, k, 0.3, 1), 7)
        return squeezed


@pytest.mark.parametrize(
    ("operator", "score"),
    [(SQUEEZE_TOKENS, CLASS_ATTENTION), (KEEP_TOKENS, RECEIVED_ATTENTION), (FUSE_INATTENTIVE, CLASS_ATTENTION)],
)
def test_one_node_each_in_a_graph_and_equal_in_onnx_runtime(operator: Any, score: Any, tmp_path: Path) -> None:
    squeeze = Squeeze(operator, score).eval()
    batch = torch.export.Dim("batch")
    dynamic = {name: {0: batch} for name in "xqk"}
    example = (random(2, 17, 8), random(2, 2, 17, 4), random(2, 2, 17, 4, seed=1))
    program = torch.export.export(squeeze, example, dynamic_shapes=dynamic)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls == [score, operator]
    exported = torch.onnx.export(
        squeeze, example, dynamo=True, dynamic_shapes=dynamic, opset_version=21, verbose=False,
        custom_translation_table=translations(),
    )  # fmt: skip
    exported.save(tmp_path / "squeeze.onnx")
    model = onnx.load(tmp_path / "squeeze.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Where", "ScatterElements", "ScatterND", "NonZero", "Loop", "If", "Shape", "Range"}
    assert not model.functions
    session = onnxruntime.InferenceSession(tmp_path / "squeeze.onnx")
    for size in (1, 2, 5):
        inputs = (random(size, 17, 8), random(size, 2, 17, 4, seed=3), random(size, 2, 17, 4, seed=4))
        (out,) = session.run(None, {name: t.numpy() for name, t in zip("xqk", inputs, strict=True)})
        torch.testing.assert_close(torch.from_numpy(out), squeeze(*inputs), rtol=0, atol=1.5e-6)
