"""The DiffRate stage: rates learned on calibration images, whole numbers of tokens, and a number of MACs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.edits import MergeTokens
from vitslim.graph.edits.merge_tokens import KeptTokens, merge_tokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.merge import match_ranked, merge_ranked, ranked_sizes
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.graph.trace import trace_timm
from vitslim.recipe.stages import DiffRate
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext
from vitslim.stages.token_squeeze.merging.diffrate import DiffRateStage, macs_by_tokens
from vitslim.stages.token_squeeze.merging.learning import Rates, Simulation
from vitslim.stages.token_squeeze.merging.rates import (
    candidate_rates,
    expected_rates,
    initial_logits,
    kept_count,
    kept_tokens,
    rank_mask,
    tilted,
)
from vitslim.stages.token_squeeze.merging.rounding import counts_for, scaled_counts
from vitslim.stages.token_squeeze.merging.simulation import Tokens, compress, weighed_attention

FAST = Train(epochs=1, batch=8, lr=0.2, wd=0.0)


def diffrate(**keys: Any) -> DiffRateStage:
    return DiffRateStage(DiffRate(method="diffrate", **{"train": FAST, **keys}))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_rate_is_the_expectation_over_candidates() -> None:
    assert candidate_rates(4).tolist() == [0, 0.25, 0.5, 0.75]
    assert float(expected_rates(torch.zeros(4))) == pytest.approx(0.375)
    for rate in (0.2, 0.5, 0.7):
        assert float(expected_rates(initial_logits(rate, 100))) == pytest.approx(rate, abs=0.005)


def test_tilted_probabilities_meet_the_target_and_have_the_gradient_of_the_constraint() -> None:
    logits, weights = random(3, 10).requires_grad_(), torch.tensor([1.0, 2.0, 3.0])
    costs = lambda rates: 6 - (weights * rates).sum()  # noqa: E731
    found = tilted(logits, costs, 4.0)
    assert float(costs(expected_rates(found.detach()))) == pytest.approx(4.0, abs=1e-5)
    (zero,) = torch.autograd.grad(costs(expected_rates(found)), logits)
    torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-6)


def test_kept_tokens_are_whole_and_have_the_gradient_of_their_expectation() -> None:
    rate, tokens = torch.tensor(0.3, requires_grad=True), torch.tensor(17.0, requires_grad=True)
    kept = kept_tokens(rate, tokens)
    assert float(kept.detach()) == kept_count(0.3, 17) == 12
    gradients = torch.autograd.grad(kept, (rate, tokens))
    assert [float(one) for one in gradients] == pytest.approx([-17, 0.7])
    assert kept_count(0.99, 5) == 1


def test_ranks_around_the_boundary_have_one_weight_and_all_the_gradient() -> None:
    kept = torch.tensor(6.0, requires_grad=True)
    mask = rank_mask(kept, 10, width=4, root=0.5)
    assert mask.tolist() == [1, 1, 1, 1, 0.25, 0.25, 0.25, 0.25, 0, 0]
    (gradient,) = torch.autograd.grad(mask.sum(), kept)
    assert float(gradient) == pytest.approx(2 * 0.5)
    assert rank_mask(kept, 10, width=0, root=0.5).tolist() == [1] * 6 + [0] * 4
    assert rank_mask(torch.tensor(10.0), 10, width=4, root=0.0).tolist() == [1] * 8 + [0] * 2
    assert rank_mask(torch.tensor(1.0), 10, width=4, root=0.0).tolist() == [1] + [0] * 9


def test_the_mean_gradient_is_the_change_of_the_loss() -> None:
    """Any function of the mask: with all roots it integrates the change over the boundary."""
    roots = torch.linspace(0, 1, 2001)
    loss = lambda mask: (mask.cumsum(0) + 0.1).log().sum()  # noqa: E731
    total = 0.0
    for root in roots.tolist():
        kept = torch.tensor(6.0, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(rank_mask(kept, 10, width=4, root=root)), kept)
        total += float(gradient) / len(roots)
    ones = torch.ones(10)
    change = (loss(ones * (torch.arange(10) < 8)) - loss(ones * (torch.arange(10) < 4))) / 4
    assert total == pytest.approx(float(change), rel=1e-3)


def test_attention_with_weights_counts_keys_as_often() -> None:
    q, k, v = (random(2, 3, 5, 4, seed=seed) for seed in range(3))
    weights = torch.tensor([[1.0, 2, 0, 0.5, 1], [1, 1, 1, 3, 0]])
    found, probabilities = weighed_attention(q, k, v, 0.5, weights)
    expected = torch.softmax(q @ k.transpose(-2, -1) * 0.5 + weights.log()[:, None, None], dim=-1)
    torch.testing.assert_close(probabilities, expected)
    torch.testing.assert_close(found, expected @ v)


def test_compressing_without_a_boundary_merges_as_the_operators_do() -> None:
    x, score = random(2, 12, 6), random(2, 10, seed=1).sigmoid()
    ones = torch.ones(2, 12)
    found = compress(Tokens(x, ones, ones, torch.tensor(10.0)), score, torch.tensor(0.2), torch.tensor(0.25))
    match = match_ranked(x, score, 8, 6)
    sizes = ranked_sizes(ones, match, 2, 6)
    expected = merge_ranked(x, match, ones, sizes, 2)
    assert int(found.patches) == 6
    assert found.weights.tolist() == [[1.0] * 8 + [0.0] * 4] * 2
    for image in range(2):
        order = score[image].topk(6)[1].argsort().argsort()
        torch.testing.assert_close(found.x[image, 2:8], expected[image, 2:][order])
        torch.testing.assert_close(found.sizes[image, 2:8], sizes[image, 2:][order])


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("vit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
        ("vit_base_patch16_siglip_224", {}),
    ],
)
def test_the_simulation_computes_the_same_as_the_deployed_graph(
    name: str, extra: dict[str, Any], proportional: bool, tiny_kwargs: dict[str, Any]
) -> None:
    graph = trace_timm(name, {**tiny_kwargs, "depth": 3, **extra})
    initial = {"blocks.0": Rates(0.2, 0.1), "blocks.1": Rates(0.0, 0.2), "blocks.2": Rates(0.2, 0.2)}
    config = DiffRate(method="diffrate", proportional_attention=proportional)
    simulation = Simulation(graph, initial, macs_by_tokens(sketch(graph), tuple(initial)), 0.7, config).eval()
    counts, left = {}, 16
    for block, rates in simulation.learned().items():
        survivors = kept_count(rates.prune, left)
        left = kept_count(rates.merge, survivors)
        counts[block] = KeptTokens(survivors, left)
    deployed = merge_tokens(graph, "diffrate", counts, proportional)
    images = random(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(simulation(images), deployed.module(images), rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_rates_and_no_weight(tiny_graph: ModelGraph) -> None:
    initial = {"blocks.0": Rates(0.2, 0.1)}
    config = DiffRate(method="diffrate")
    macs = macs_by_tokens(sketch(tiny_graph), tuple(initial))
    simulation = Simulation(tiny_graph, initial, macs, 0.8, config).train()
    torch.manual_seed(0)
    simulation(random(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, parameter in simulation.named_parameters() if parameter.requires_grad] == ["logits"]
    assert simulation.logits.grad is not None
    assert simulation.logits.grad.abs().amax(dim=1).min() > 0


def test_macs_by_tokens_are_those_of_the_sketch(deit_tiny: ModelGraph) -> None:
    dense = sketch(deit_tiny)
    fraction = macs_by_tokens(dense, ("blocks.3", "blocks.6"))
    assert fraction({"blocks.3": 196, "blocks.6": 196}) == 1
    removed = merge_tokens(deit_tiny, "diffrate", {"blocks.3": KeptTokens(98, 98), "blocks.6": KeptTokens(49, 49)})
    counted = sketch(removed)
    macs = sum(p.macs(counted.axes) for p in counted.matmuls if p.role != "squeeze")
    assert fraction({"blocks.3": 98, "blocks.6": 49}) == pytest.approx(macs / dense.cost().macs)


def test_whole_counts_meet_a_number_of_macs() -> None:
    rates = {"a": (0.1, 0.1), "b": (0.05, 0.2), "c": (0.0, 0.0)}
    assert scaled_counts(rates, 100, 1.0) == {
        "a": KeptTokens(90, 81), "b": KeptTokens(77, 62), "c": KeptTokens(62, 62)
    }  # fmt: skip

    def tokens(counts: dict[str, KeptTokens]) -> float:
        return sum(count.keep for count in counts.values())

    for target in (290, 203, 100, 7):
        counts = counts_for(rates, 100, target, tokens)
        assert abs(tokens(counts) - target) <= 1
        survivors = [100, *(count.keep for count in counts.values())]
        assert all(before >= c.survivors >= c.keep >= 1 for before, c in zip(survivors, counts.values(), strict=False))


@pytest.mark.parametrize("macs", [0.5, 0.8])
def test_learned_counts_meet_the_macs(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext], macs: float
) -> None:
    stage = diffrate(macs=macs)
    assert stage.requires(sketch(tiny_graph)) == []
    context = digits_context(tiny_graph)
    result = stage.apply(tiny_graph, context)
    assert stage.ensures(tiny_graph, result.graph) == []
    assert result.metrics["macs"] == sketch(result.graph).cost().macs / sketch(tiny_graph).cost().macs
    assert result.metrics["macs"] == pytest.approx(macs, abs=0.03)  # a token of 16
    assert {note.layer for note in (*result.changes, *result.skipped)} == {"blocks.0", "blocks.1"}
    assert all("patch tokens" in note.result for note in result.changes)
    again = stage.apply(tiny_graph, context)
    assert again.graph.edits == result.graph.edits
    weights = tiny_graph.parameters()
    assert all(torch.equal(weight, weights[name]) for name, weight in result.graph.parameters().items())


@pytest.mark.slow
def test_learned_counts_of_deit_tiny_are_within_one_percent(deit_tiny: ModelGraph) -> None:
    dense = sketch(deit_tiny)
    for macs in (0.35, 0.65, 0.9):
        estimate = diffrate(macs=macs).estimate(dense)
        assert estimate.data_dependent
        assert estimate.cost().macs / dense.cost().macs == pytest.approx(macs, rel=0.01)


def test_learning_merges_rather_than_drops_tokens_that_matter(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    """The class token reads patches in the second block alone: tokens dropped before are lost, merged ones are not."""
    with torch.no_grad():
        tiny_graph.module.get_parameter("blocks.0.attn.proj.weight").zero_()
        for layer in ("blocks.1.attn.proj", "head"):
            tiny_graph.module.get_parameter(f"{layer}.weight").mul_(20)
    stage = diffrate(macs=0.75, train=Train(epochs=4, batch=8, lr=0.4, wd=0.0))
    edits = stage.apply(tiny_graph, digits_context(tiny_graph)).graph.edits
    assert isinstance(edits[0], MergeTokens)
    survivors, keep = edits[0].counts["blocks.0"]
    assert 16 - survivors < survivors - keep


def test_all_macs_are_the_identity(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> None:
    stage = diffrate(macs=1.0)
    result = stage.apply(tiny_graph, digits_context(tiny_graph))
    assert result.graph.edits == ()
    assert stage.ensures(tiny_graph, result.graph) == []
    assert stage.estimate(sketch(tiny_graph)).cost() == sketch(tiny_graph).cost()


@pytest.mark.parametrize(("keys", "where", "words"), [
    ({"macs": 0.01}, "macs", "with one patch token after 'blocks.0'"),
    ({"macs": 0.5, "blocks": (1,)}, "macs", "with one patch token after 'blocks.1'"),
    ({"blocks": (4,)}, "blocks", "block 4 does not exist"),
])  # fmt: skip
def test_targets_out_of_reach_are_refused_with_what_can_be_reached(
    tiny_graph: ModelGraph, keys: dict[str, Any], where: str, words: str
) -> None:
    (problem,) = diffrate(**keys).requires(sketch(tiny_graph))
    assert problem.where == where
    assert words in problem.message


def test_the_smallest_number_of_macs_can_be_reached(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    dense: ModelSketch = sketch(tiny_graph)
    (problem,) = diffrate(macs=0.01).requires(dense)
    least = float(problem.hint.split()[5].rstrip(","))
    stage = diffrate(macs=least)
    assert stage.requires(dense) == []
    assert stage.ensures(tiny_graph, stage.apply(tiny_graph, digits_context(tiny_graph)).graph) == []


def test_models_that_pool_by_a_maximum_are_refused(
    digits_context: Callable[..., StageContext], tiny_kwargs: dict[str, Any]
) -> None:
    graph = trace_timm("vit_tiny_patch16_224", {**tiny_kwargs, "class_token": False, "global_pool": "max"})
    with pytest.raises(StageError, match="pools its tokens by"):
        diffrate(macs=0.8).apply(graph, digits_context(graph))


@pytest.mark.parametrize("keys", [{"mixup": 0.8}, {"augment": "light"}])
def test_keys_without_effect_are_refused(keys: dict[str, Any]) -> None:
    (problem,) = DiffRate(method="diffrate", train=Train(**keys)).problems((), ())
    assert problem.where == f"train.{next(iter(keys))}"
