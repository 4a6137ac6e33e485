"""Orders of channels for 2:4, and masks and weights that keep outputs: mathematics and stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitslim.errors import StageError
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.stages import Permute, TwoFour
from vitslim.sparsity import device_bytes, parse_pattern, skips_multiplications
from vitslim.stages.contract import StageContext
from vitslim.stages.prune import two_four_stage
from vitslim.stages.prune.two_four.alps import alps_mask, best_refit
from vitslim.stages.prune.two_four.patterns import TWO_OF_FOUR, keeps_pattern, pattern_mask
from vitslim.stages.prune.two_four.permutation import efficacy, find_permutation, kept_magnitude
from vitslim.stages.prune.two_four.permute import permute_channels
from vitslim.stages.prune.two_four.sparsegpt import refit, sparsegpt_mask, wanda_scores
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.reconstruction.curvature import DAMPING, Curvature, effective_rows
from vitslim.stages.reconstruction.layerwise import LayerSolver
from vitslim.stages.reconstruction.sensitivity import Sensitivity, row_weights
from vitslim.training.evaluate import sqnr_db
from vitslim.training.taps import with_taps


def drawn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_an_order_is_a_permutation_that_never_keeps_less(seed: int, runs: int, rows: int) -> None:
    weight = drawn(rows, 4 * runs, seed)
    order = find_permutation(weight)
    assert sorted(order.tolist()) == list(range(4 * runs))
    size = weight.abs().T.double()
    assert kept_magnitude(size[order]).sum() >= kept_magnitude(size).sum() - 1e-5
    assert -1e-9 <= efficacy(weight, order) <= 1 + 1e-9


def test_no_swap_of_two_columns_is_left_that_gains() -> None:
    weight = drawn(6, 16)
    size = weight.abs().T[find_permutation(weight)].double()
    best = kept_magnitude(size).sum()
    for i, j in permutations(range(16), 2):
        swapped = torch.arange(16)
        swapped[i], swapped[j] = j, i
        assert kept_magnitude(size[swapped]).sum() <= best + 1e-5


def test_large_columns_are_spread_over_runs() -> None:
    weight = torch.cat([10 + torch.rand(8, 4), torch.rand(8, 4)], dim=1)  # a run of large, a run of small columns
    order = find_permutation(weight)
    assert [int((order[run : run + 4] < 4).sum()) for run in (0, 4)] == [2, 2]
    assert efficacy(weight, order) > 0.9


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "2:4-pairs"])
def test_sparsegpt_loses_less_than_magnitude(pattern: str) -> None:
    found = parse_pattern(pattern)
    assert found is not None
    weight = drawn(24, 32)
    inputs = drawn(400, 32, 1) @ (torch.eye(32) + 0.4 * drawn(32, 32, 2))  # inputs that say something of each other
    curvature = Curvature.of_rows(inputs.T @ inputs, 24)
    mask = sparsegpt_mask(weight, curvature, found)
    together = alps_mask(weight, curvature, found)
    assert keeps_pattern(mask, found) and keeps_pattern(together, found)
    solved = refit(weight, mask, curvature)
    assert not solved[~mask].any()

    def lost(candidate: torch.Tensor) -> float:
        return float(((candidate - weight) @ inputs.T).square().sum())

    by_size, wanda = pattern_mask(weight.abs(), found), pattern_mask(wanda_scores(weight, curvature), found)
    assert lost(solved) < lost(refit(weight, by_size, curvature)) < lost(weight * by_size)
    assert lost(refit(weight, wanda, curvature)) < lost(weight * wanda)
    assert lost(refit(weight, together, curvature)) < 0.95 * lost(solved)
    best_mask, best = best_refit(weight, curvature, found)
    assert torch.equal(best_mask, together)
    apart = DAMPING * float(inputs.square().sum() / 32 * (best - weight).square().sum())
    assert curvature.cost(best - weight) == pytest.approx(lost(best) + apart, rel=1e-4)


@pytest.mark.parametrize("pattern", ["2:4", "2:4-pairs"])
def test_rows_that_share_what_they_move_make_up_for_each_other(pattern: str) -> None:
    found = parse_pattern(pattern)
    assert found is not None
    weight = drawn(24, 32)
    inputs, outputs = (drawn(400, n, 1) @ (torch.eye(n) + 0.4 * drawn(n, n, 2)) for n in (32, 24))
    both = Curvature.of(inputs.T @ inputs, outputs.T @ outputs)
    mask, alone = best_refit(weight, Curvature.of_rows(inputs.T @ inputs, 24), found)
    refitted = refit(weight, mask, both)
    together_mask, together = best_refit(weight, both, found)
    assert keeps_pattern(together_mask, found) and not together[~together_mask].any()
    assert both.cost(together - weight) < 0.95 * both.cost(refitted - weight) < 0.9 * both.cost(alone - weight)
    gradient = both.gradient(refitted - weight)
    assert gradient[mask].abs().max() < 0.02 * gradient[~mask].abs().max()


def test_weights_of_strong_inputs_stay() -> None:
    weight, strength = drawn(8, 16), torch.logspace(-2, 1, 16)[torch.randperm(16)]
    curvature = Curvature.of_rows(torch.diag(strength.square()), 8)  # inputs that say nothing of each other
    weak = curvature.inputs.diagonal().sqrt()
    assert torch.equal(sparsegpt_mask(weight, curvature, TWO_OF_FOUR), pattern_mask(weight.abs() * weak))
    assert not torch.equal(sparsegpt_mask(weight, curvature, TWO_OF_FOUR), pattern_mask(weight.abs()))


def test_refit_is_the_least_squares_solution() -> None:
    weight, inputs = drawn(3, 8), drawn(50, 8, 1)
    mask = pattern_mask(weight.abs())
    curvature = Curvature.of_rows(inputs.T @ inputs, 3)
    gradient = curvature.gradient(refit(weight, mask, curvature) - weight)
    assert gradient[mask].abs().max() < 1e-3 * gradient[~mask].abs().max()


def test_whole_weights_within_any_mask_come_back(tiny_graph: ModelGraph) -> None:
    images = torch.randn(8, *tiny_graph.source.image, generator=torch.Generator().manual_seed(0))
    same = LayerSolver(images, Silent(), "")(tiny_graph, list(sketch_names(tiny_graph)), lambda _n, w, _g: w)
    with torch.no_grad():
        torch.testing.assert_close(same.module(images), tiny_graph.module(images), rtol=0, atol=1e-4)


def test_rows_count_by_weight_and_mean_outputs_of_a_changed_layer_stay(tiny_graph: ModelGraph) -> None:
    images = torch.randn(8, *tiny_graph.source.image, generator=torch.Generator().manual_seed(0))  # one backward pass
    name = "head.weight"
    costs: list[Curvature] = []

    def halve(_name: str, weight: torch.Tensor, curvature: Curvature) -> torch.Tensor:
        costs.append(curvature)
        return 0.5 * weight

    halved = LayerSolver(images, Silent(), "", joint=[name])(tiny_graph, [name], halve)
    with torch.no_grad():
        before, after = tiny_graph.module(images), halved.module(images)
    layer = layer_nodes(tiny_graph.module)[name][0]
    ((_, norms, gradients),) = Sensitivity(tiny_graph.module, [(name, layer)], 0)(images)
    weights = row_weights(norms)
    _, (x,) = with_taps(tiny_graph.module, [argument(layer, 0)])(images)
    x = x.detach()
    centered = x - weights @ x / len(x)
    seen = effective_rows(weights)
    expected = Curvature.of(centered.T @ torch.diag(weights) @ centered, gradients.T @ gradients, seen)
    torch.testing.assert_close(costs[0].inputs, expected.inputs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(costs[0].outputs, expected.outputs)
    torch.testing.assert_close(weights @ after, weights @ before, rtol=0, atol=1e-4)
    assert not torch.allclose(after, before, atol=1e-3)


def test_only_what_moves_the_logits_counts(tiny_graph: ModelGraph) -> None:
    """Patches say nothing any more in the last MLP; the class token does."""
    layers = {name: nodes[0] for name, nodes in layer_nodes(tiny_graph.module).items()}
    picked = ["patch_embed.proj.weight", "blocks.1.mlp.fc2.weight", "head.weight"]
    images = torch.randn(3, *tiny_graph.source.image, generator=torch.Generator().manual_seed(0))
    found = list(Sensitivity(tiny_graph.module, [(name, layers[name]) for name in picked], 0)(images))
    assert [name for name, _, _ in found] == picked
    patches, last, head = (norms for _, norms, _ in found)
    drawn_directions = torch.randn(3, found[2][2].shape[1], generator=torch.Generator().manual_seed(0))
    length = drawn_directions.norm(dim=1)
    torch.testing.assert_close(head.float(), length)
    torch.testing.assert_close(found[2][2], drawn_directions / length.sqrt()[:, None])
    assert len(patches) == 3 * 16 and (patches > 0).all()
    assert ((last.view(3, -1) > 0).nonzero() == torch.tensor([[0, 0], [1, 0], [2, 0]])).all()
    assert len(head) == 3 and row_weights(head).mean().item() == pytest.approx(1)
    assert row_weights(torch.zeros(4)).tolist() == [1.0] * 4


@pytest.mark.parametrize(("score", "fit", "draws"), [("wanda", 20, 0), ("wanda", 400, 0), ("kfac", 400, 3)])
def test_a_score_sees_images_of_all_classes(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch, score: Any,
    fit: int, draws: int,
) -> None:  # fmt: skip
    """Calibration images come class by class; those that fit into memory must not all be of the first. A joint score
    has 1,024 gradients at least."""
    context = digits_context(tiny_graph, calibration=400)
    by_class = context.data.calibration.subset(sorted(range(400), key=context.data.calibration.labels.__getitem__))
    context = replace(context, data=replace(context.data, calibration=by_class))
    seen: list[Any] = []

    def solver(images: torch.Tensor, *_: Any, **keys: Any) -> LayerSolver:
        seen.extend((images, keys["draws"]))
        raise StageError("seen enough")

    if fit < len(by_class):
        monkeypatch.setattr(two_four_stage, "images_at_once", lambda *_, **__: fit)
    monkeypatch.setattr(two_four_stage, "LayerSolver", solver)
    with pytest.raises(StageError, match="seen enough"):
        TwoFourStage(TwoFour(method="two-four", score=score)).apply(tiny_graph, context)
    wanted = by_class.balanced(fit)
    assert seen[1] == draws
    assert torch.equal(seen[0], torch.stack([wanted[i][0] for i in range(fit)]))
    assert len(set(wanted.labels)) == 10


def sketch_names(graph: ModelGraph) -> list[str]:
    return [layer.weight for layer in sketch(graph).linears if layer.role != "head"]


def logits(graph: ModelGraph, context: StageContext) -> torch.Tensor:
    with torch.no_grad():
        return graph.module(torch.stack([context.data.val[i][0] for i in range(40)]))


def test_reordering_changes_no_output_and_keeps_more(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    context = digits_context(tiny_graph)
    plain, ordered = (
        TwoFourStage(TwoFour(method="two-four", permute=permute)).apply(tiny_graph, context)
        for permute in (None, Permute(embed=True))
    )
    before = plain.metrics["kept_magnitude"]
    assert ordered.metrics["kept_magnitude_in_old_order"] == pytest.approx(before)
    assert ordered.metrics["kept_magnitude"] > before
    moved = {note.layer for note in ordered.changes if note.result == "channels reordered"}
    assert {"embed", "blocks.0.mlp", "blocks.1.mlp"} <= moved
    names = sketch_names(tiny_graph)
    reordered, _ = permute_channels(tiny_graph, names, Permute(embed=True), Silent())
    torch.testing.assert_close(logits(reordered, context), logits(tiny_graph, context), rtol=0, atol=1e-5)
    slices = [edit for edit in ordered.graph.edits if hasattr(edit, "kept")]
    assert len(slices) == 1 and slices[0].kept.keys() == moved


@pytest.mark.parametrize(
    "keys",
    [*({"score": score} for score in ("wanda", "sparsegpt", "alps", "kfac")), {"pattern": "1:4"}, {"pattern": "4:8"}],
)
def test_every_key_gives_an_exact_mask(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext], keys: dict[str, Any]
) -> None:
    context = digits_context(tiny_graph)
    stage = TwoFourStage(TwoFour(method="two-four", **keys))
    assert stage.requires(sketch(tiny_graph)) == []
    result = stage.apply(tiny_graph, context)
    assert stage.ensures(tiny_graph, result.graph) == []
    assert sketch(result.graph).cost() == stage.estimate(sketch(tiny_graph)).cost()
    assert set(result.graph.masks) == set(sketch_names(tiny_graph))


def test_a_model_of_one_class_is_asked_by_its_logit(
    tiny_graph: ModelGraph, tiny_kwargs: dict[str, Any], digits_context: Callable[..., StageContext]
) -> None:
    """The probability of a single class is 1, and its gradient 0: all outputs would count alike."""
    one = trace_timm("vit_tiny_patch16_224", {**tiny_kwargs, "num_classes": 1})
    context = digits_context(tiny_graph)
    reference = logits(one, context)
    scores = {score: TwoFourStage(TwoFour(method="two-four", score=score)) for score in ("wanda", "kfac")}
    found = {k: sqnr_db(reference, logits(stage.apply(one, context).graph, context)) for k, stage in scores.items()}
    assert found["kfac"] > found["wanda"] + 3


def test_each_score_stays_closer_to_the_dense_model(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    context = digits_context(tiny_graph, calibration=100)
    reference = logits(tiny_graph, context)
    found = {
        score: sqnr_db(reference, logits(TwoFourStage(TwoFour(method="two-four", score=score)).apply(
            tiny_graph, context).graph, context))
        for score in ("magnitude", "wanda", "sparsegpt", "alps", "kfac")
    }  # fmt: skip
    assert min(found["sparsegpt"], found["alps"]) > max(found["magnitude"], found["wanda"])
    assert found["kfac"] > found["alps"] + 3


def test_scores_of_inputs_refuse_convolutions_in_groups(digits_context: Callable[..., StageContext]) -> None:
    graph = trace_timm("test_convnext", {"num_classes": 10})
    stage = TwoFourStage(TwoFour(method="two-four", score="sparsegpt"))
    convolutions = {w: argument(nodes[0], 6, "groups", 1) for w, nodes in layer_nodes(graph.module).items()}
    grouped = [weight for weight, groups in convolutions.items() if groups > 1]
    assert grouped
    with pytest.raises(StageError, match="in groups"):
        stage._refuse_groups(graph, grouped)


@pytest.mark.parametrize(
    ("pattern", "bits", "bytes_of_64"),
    [("2:4", 16, 72), ("2:4", 8, 40), ("2:4-pairs", 4, 20), ("2:4-pairs", 8, 64), ("1:4", 8, 20), ("4:8", 8, 44)],
)
def test_bytes_on_a_device(pattern: str, bits: int, bytes_of_64: int) -> None:
    assert device_bytes(pattern, 8, 8, bits) == bytes_of_64
    assert skips_multiplications(pattern, bits) == (pattern == "2:4" or (pattern, bits) == ("2:4-pairs", 4))


def test_a_pattern_that_drops_nothing_is_refused(tiny_graph: ModelGraph) -> None:
    (problem,) = TwoFourStage(TwoFour(method="two-four", pattern="4:4")).requires(sketch(tiny_graph))
    assert "drops no weight" in problem.message
    assert parse_pattern("2:4") == TWO_OF_FOUR
