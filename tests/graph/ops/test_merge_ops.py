"""The merge operators against plain loops over tokens, in torch and in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitslim.graph.ops.merge import (
    ALTERNATE_SIZES,
    MATCH_ALTERNATE,
    MATCH_RANKED,
    MERGE_ALTERNATE,
    MERGE_RANKED,
    RANKED_SIZES,
    SIZE_BIAS,
    UNIT_SIZES,
    alternate_sizes,
    match_alternate,
    match_ranked,
    merge_alternate,
    merge_ranked,
    ranked_sizes,
    size_bias,
    unit_sizes,
)
from vitslim.graph.ops.selection import HIGHEST, TAKE_ROWS
from vitslim.stages.export.translate import translations


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sizes_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / ((a.norm() + 1e-6) * (b.norm() + 1e-6)))


Tokens = tuple[Tensor, Tensor]
"""Features (T, C) and sizes (T,) of one image, in float64."""


def merged_by_loops(tokens: list[tuple[Tensor, float]], guests: dict[int, list[tuple[Tensor, float]]]) -> Tokens:
    """Merge guests into tokens, which are pairs of features and size, by the index of their host."""
    features, sizes = [], []
    for index, (host, own) in enumerate(tokens):
        group = [(host, own), *guests.get(index, [])]
        total = sum(size for _, size in group)
        features.append(sum(feature * size for feature, size in group) / total)
        sizes.append(total)
    return torch.stack(features), torch.tensor(sizes, dtype=torch.float64)


def tome_by_loops(x: Tensor, keys: Tensor, sizes: Tensor, prefix: int, merged: int) -> Tokens:
    """Merge the tokens of one image by the definition of ToMe. x: (T, C), keys: (H, T, d), sizes: (T,)."""
    pairs = list(zip(x.double(), sizes.double().tolist(), strict=True))
    metric = keys.double().mean(0)
    even = [i for i in range(prefix, len(x)) if i % 2 == 0]
    odd = [i for i in range(prefix, len(x)) if i % 2 == 1]
    best = {}
    for i in even:
        scores = [cosine(metric[i], metric[j]) for j in odd]
        best[i] = max(scores), scores.index(max(scores))
    gone = sorted(even, key=lambda i: (-best[i][0], i))[:merged]
    guests: dict[int, list[tuple[Tensor, float]]] = {}
    for i in gone:
        guests.setdefault(best[i][1], []).append(pairs[i])
    hosts, host_sizes = merged_by_loops([pairs[j] for j in odd], guests)
    stay = [*range(prefix), *(i for i in even if i not in gone)]
    first = torch.stack([x[i].double() for i in stay]) if stay else hosts[:0]
    return torch.cat([first, hosts]), torch.cat([sizes[stay].double(), host_sizes])


def diffrate_by_loops(x: Tensor, score: Tensor, sizes: Tensor, survivors: int, keep: int) -> Tokens:
    """Drop and merge the tokens of one image by the definition of DiffRate. x: (P + N, C), score: (N,), sizes: (T,)."""
    pairs = list(zip(x.double(), sizes.double().tolist(), strict=True))
    prefix = len(x) - len(score)
    ranked = [i + prefix for i in sorted(range(len(score)), key=lambda i: (-float(score[i]), i))]
    stay, gone = sorted(ranked[:keep]), ranked[keep:survivors]
    guests: dict[int, list[tuple[Tensor, float]]] = {}
    for i in gone:
        similar = [cosine(x[i].double(), x[j].double()) for j in stay]
        guests.setdefault(similar.index(max(similar)), []).append(pairs[i])
    hosts, host_sizes = merged_by_loops([pairs[j] for j in stay], guests)
    return torch.cat([x[:prefix].double(), hosts]), torch.cat([sizes[:prefix].double(), host_sizes])


def tome(x: Tensor, keys: Tensor, sizes: Tensor, prefix: int, keep: int) -> Tokens:
    match = match_alternate(keys, prefix, keep)
    merged_sizes = alternate_sizes(sizes, match, prefix, keep)
    return merge_alternate(x, match, sizes, merged_sizes, prefix), merged_sizes


def diffrate(x: Tensor, score: Tensor, sizes: Tensor, survivors: int, keep: int) -> Tokens:
    prefix = x.shape[1] - score.shape[1]
    match = match_ranked(x, score, survivors, keep)
    merged_sizes = ranked_sizes(sizes, match, prefix, keep)
    return merge_ranked(x, match, sizes, merged_sizes, prefix), merged_sizes


def assert_same(found: Tokens, expected: list[Tokens]) -> None:
    for place in (0, 1):
        torch.testing.assert_close(found[place].double(), torch.stack([one[place] for one in expected]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.integers(2, 20), st.data())
def test_tome_follows_its_definition(prefix: int, patches: int, data: st.DataObject) -> None:
    merged, seed = data.draw(st.integers(1, patches // 2)), data.draw(st.integers(0, 1000))
    tokens = prefix + patches
    x, keys, sizes = random(2, tokens, 6, seed=seed), random(2, 3, tokens, 4, seed=seed + 1), sizes_of(2, tokens)
    found = tome(x, keys, sizes, prefix, patches - merged)
    assert_same(found, [tome_by_loops(x[i], keys[i], sizes[i], prefix, merged) for i in range(2)])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.integers(1, 20), st.data())
def test_diffrate_follows_its_definition(prefix: int, patches: int, data: st.DataObject) -> None:
    survivors = data.draw(st.integers(1, patches))
    keep, seed = data.draw(st.integers(1, survivors)), data.draw(st.integers(0, 1000))
    x, score = random(2, prefix + patches, 6, seed=seed), random(2, patches, seed=seed + 1).sigmoid()
    sizes = sizes_of(2, prefix + patches)
    found = diffrate(x, score, sizes, survivors, keep)
    assert_same(found, [diffrate_by_loops(x[i], score[i], sizes[i], survivors, keep) for i in range(2)])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 3), st.integers(2, 40), st.integers(0, 1000))
def test_sizes_keep_their_sum_and_prefix_tokens_pass_unchanged(prefix: int, patches: int, seed: int) -> None:
    tokens = prefix + patches
    x, keys = random(3, tokens, 8, seed=seed), random(3, 2, tokens, 4, seed=seed)
    found, sizes = tome(x, keys, unit_sizes(x), prefix, patches - patches // 2)
    ranked, ranked_result = diffrate(x, random(3, patches, seed=seed).sigmoid(), unit_sizes(x), patches, 1)
    assert sizes.sum(1).tolist() == ranked_result.sum(1).tolist() == [tokens] * 3
    for result, count in ((found, sizes), (ranked, ranked_result)):
        assert torch.equal(result[:, :prefix], x[:, :prefix])
        assert torch.equal(count[:, :prefix], torch.ones(3, prefix))


def test_hosts_without_guests_are_unchanged_bit_for_bit() -> None:
    x, keys, sizes = random(4, 30, 8), random(4, 2, 30, 4, seed=1), sizes_of(4, 30)
    found, merged_sizes = tome(x, keys, sizes, 1, 24)
    odd = torch.arange(1, 30, 2)
    alone = merged_sizes[:, -15:] == sizes[:, odd]
    assert 0 < int(alone.sum()) < alone.numel()
    assert torch.equal(found[:, -15:][alone], x[:, odd][alone])


def test_equal_tokens_merge_in_the_order_of_their_index() -> None:
    keys = torch.ones(1, 2, 12, 4)
    assert match_alternate(keys, 1, 8).tolist() == [[8, 10, 2, 4, 6, 0, 0, 0]]
    assert match_alternate(torch.zeros(1, 2, 12, 4), 2, 8).tolist() == [[6, 8, 10, 2, 4, 0, 0]]
    x = torch.ones(1, 9, 4)
    assert match_ranked(x, torch.full((1, 8), 0.125), 6, 4).tolist() == [[1, 2, 3, 4, 5, 6, 0, 0]]


@pytest.mark.parametrize("tokens", [17, 197, 578, 1025])
def test_equal_similarities_are_ordered_for_many_tokens(tokens: int) -> None:
    match = match_alternate(torch.ones(1, 1, tokens, 2), 1, tokens - 1 - tokens // 4)
    merged = tokens // 4
    assert match[0, -2 * merged : -merged].tolist() == list(range(2, 2 + 2 * merged, 2))


def test_half_of_the_patch_tokens_can_be_merged() -> None:
    for patches in (2, 3, 8, 9):
        x, keys = random(2, 1 + patches, 4), random(2, 1, 1 + patches, 4)
        found, sizes = tome(x, keys, unit_sizes(x), 1, patches - patches // 2)
        assert found.shape == (2, 1 + patches - patches // 2, 4)
        assert sizes.sum(1).tolist() == [1 + patches] * 2


@pytest.mark.parametrize("keep", [4, 10, 11])
def test_tome_refuses_other_counts(keep: int) -> None:
    with pytest.raises(ValueError, match=f"cannot merge {10 - keep} of 10 patch tokens"):
        match_alternate(random(1, 2, 11, 4), 1, keep)


@pytest.mark.parametrize(("survivors", "keep"), [(11, 5), (5, 6), (5, 0)])
def test_diffrate_refuses_other_counts(survivors: int, keep: int) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {survivors} and then {keep} of 10 patch tokens"):
        match_ranked(random(1, 11, 4), random(1, 10).sigmoid(), survivors, keep)


def test_size_bias_counts_a_key_as_often_as_its_size() -> None:
    q, k, v = (random(2, 3, 5, 4, seed=seed) for seed in range(3))
    sizes = sizes_of(2, 5)
    weighted = torch.nn.functional.scaled_dot_product_attention(q, k, v, size_bias(sizes))
    for image in range(2):
        times = sizes[image].long()
        repeated = (one[image].repeat_interleave(times, dim=1) for one in (k, v))
        expected = torch.nn.functional.scaled_dot_product_attention(q[image], *repeated)
        torch.testing.assert_close(weighted[image], expected)


def test_gradients_are_those_of_the_function() -> None:
    x, keys = random(1, 9, 3).double().requires_grad_(), random(1, 2, 9, 4).double()
    sizes = sizes_of(1, 9).double()
    assert torch.autograd.gradcheck(lambda tokens: tome(tokens, keys, sizes, 1, 5)[0], (x,))
    match = match_ranked(x, torch.linspace(0, 1, 8).double()[None], 6, 3)
    merged_sizes = ranked_sizes(sizes, match, 1, 3)
    assert torch.autograd.gradcheck(lambda tokens: merge_ranked(tokens, match, sizes, merged_sizes, 1), (x,))


class Tome(torch.nn.Module):
    def forward(self, x: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        sizes, match = UNIT_SIZES(x), MATCH_ALTERNATE(keys, 1, 11)
        merged_sizes = ALTERNATE_SIZES(sizes, match, 1, 11)
        return MERGE_ALTERNATE(x, match, sizes, merged_sizes, 1), SIZE_BIAS(merged_sizes)


class DiffRate(torch.nn.Module):
    def forward(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        sizes, match = UNIT_SIZES(x), MATCH_RANKED(x, score, 12, 9)
        merged_sizes = RANKED_SIZES(sizes, match, 1, 9)
        return MERGE_RANKED(x, match, sizes, merged_sizes, 1), SIZE_BIAS(merged_sizes)


@pytest.mark.parametrize("module", [Tome(), pytest.param(DiffRate(), marks=pytest.mark.slow)])
def test_one_node_each_in_a_graph_and_equal_in_onnx_runtime(module: torch.nn.Module, tmp_path: Path) -> None:
    def inputs(batch: int) -> tuple[Tensor, Tensor]:
        x = random(batch, 17, 8, seed=batch)
        return x, random(batch, 16).sigmoid() if isinstance(module, DiffRate) else random(batch, 2, 17, 4)

    dynamic = ({0: torch.export.Dim("batch")}, {0: torch.export.Dim("batch")})
    program = torch.export.export(module.eval(), inputs(2), dynamic_shapes=dynamic)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert len(calls) == 5
    assert not {HIGHEST, TAKE_ROWS} & set(calls)
    path = tmp_path / "merge.onnx"
    torch.onnx.export(
        module.eval(), inputs(2), dynamo=True, dynamic_shapes=dynamic, opset_version=21, verbose=False,
        input_names=["x", "other"], custom_translation_table=translations(),
    ).save(path)  # type: ignore[union-attr]  # fmt: skip
    model = onnx.load(path)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Where", "ScatterND", "NonZero", "Loop", "If", "Range"}
    assert not model.functions
    session = onnxruntime.InferenceSession(path)
    for size in (1, 2, 7):
        given = inputs(size)
        results = session.run(None, {name: one.numpy() for name, one in zip(("x", "other"), given, strict=True)})
        for found, expected in zip(results, module(*given), strict=True):
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1.5e-6)
