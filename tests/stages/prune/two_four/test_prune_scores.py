"""Scores of 2:4 masks: solvers and stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.edits.mask import mask_weights
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.recipe.stages import TwoFour
from vitslim.recipe.stages.prune import SCORES as NAMES
from vitslim.sparsity import parse_pattern
from vitslim.stages.contract import StageContext
from vitslim.stages.prune.two_four import scores
from vitslim.stages.prune.two_four.patterns import TWO_OF_FOUR, keeps_pattern, pattern_mask
from vitslim.stages.prune.two_four.scores import SCORES, MaskInputs, by_layer, kfac, refuse_grouped_convolutions
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.reconstruction import sparsegpt as sparsegpt_module
from vitslim.stages.reconstruction.alps import alps_mask
from vitslim.stages.reconstruction.curvature import DAMPING, Curvature
from vitslim.stages.reconstruction.layerwise import LayerSolver
from vitslim.stages.reconstruction.refit import refit, refit_rows
from vitslim.stages.reconstruction.sparsegpt import sparsegpt_mask, wanda_scores
from vitslim.training.evaluate import sqnr_db


def test_the_recipe_names_every_score() -> None:
    assert SCORES.keys() == NAMES.keys()


def drawn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "2:4-pairs"])
def test_sparsegpt_has_a_smaller_error_than_magnitude(pattern: str) -> None:
    found = parse_pattern(pattern)
    assert found is not None
    weight = drawn(24, 32)
    inputs = drawn(400, 32, 1) @ (torch.eye(32) + 0.4 * drawn(32, 32, 2))  # correlated inputs
    curvature = Curvature.of_rows(inputs.T @ inputs, 24)
    mask = sparsegpt_mask(weight, curvature, partial(pattern_mask, pattern=found), found.span)
    together = alps_mask(weight, curvature, partial(pattern_mask, pattern=found))
    assert keeps_pattern(mask, found) and keeps_pattern(together, found)
    solved = refit(weight, mask, curvature)
    assert not solved[~mask].any()

    def lost(candidate: torch.Tensor) -> float:
        return float(((candidate - weight) @ inputs.T).square().sum())

    by_size, wanda = pattern_mask(weight.abs(), found), pattern_mask(wanda_scores(weight, curvature), found)
    assert lost(solved) < lost(refit(weight, by_size, curvature)) < lost(weight * by_size)
    assert lost(refit(weight, wanda, curvature)) < lost(weight * wanda)
    assert lost(refit(weight, together, curvature)) < 0.95 * lost(solved)
    best_mask, best = kfac(weight, curvature, found)
    assert torch.equal(best_mask, together)
    apart = DAMPING * float(inputs.square().sum() / 32 * (best - weight).square().sum())
    assert curvature.cost(best - weight) == pytest.approx(lost(best) + apart, rel=1e-4)


@pytest.mark.parametrize("pattern", ["2:4", "2:4-pairs"])
def test_rows_of_a_joint_curvature_compensate_each_other(pattern: str) -> None:
    found = parse_pattern(pattern)
    assert found is not None
    weight = drawn(24, 32)
    inputs, outputs = (drawn(400, n, 1) @ (torch.eye(n) + 0.4 * drawn(n, n, 2)) for n in (32, 24))
    both = Curvature.of(inputs.T @ inputs, outputs.T @ outputs)
    mask, alone = kfac(weight, Curvature.of_rows(inputs.T @ inputs, 24), found)
    refitted = refit(weight, mask, both)
    together_mask, together = kfac(weight, both, found)
    assert keeps_pattern(together_mask, found) and not together[~together_mask].any()
    assert both.cost(together - weight) < 0.95 * both.cost(refitted - weight) < 0.9 * both.cost(alone - weight)
    gradient = both.gradient(refitted - weight)
    assert gradient[mask].abs().max() < 0.02 * gradient[~mask].abs().max()


def test_weights_of_strong_inputs_are_kept() -> None:
    weight, strength = drawn(8, 16), torch.logspace(-2, 1, 16)[torch.randperm(16)]
    curvature = Curvature.of_rows(torch.diag(strength.square()), 8)  # uncorrelated inputs
    weak = curvature.inputs.diagonal().sqrt()
    assert torch.equal(
        sparsegpt_mask(weight, curvature, pattern_mask, TWO_OF_FOUR.span), pattern_mask(weight.abs() * weak)
    )
    assert not torch.equal(
        sparsegpt_mask(weight, curvature, pattern_mask, TWO_OF_FOUR.span), pattern_mask(weight.abs())
    )


@pytest.mark.parametrize("pattern", ["2:4", "2:4-pairs", "1:8"])
def test_rows_are_refitted_as_a_factorization_of_each_refits_them(pattern: str) -> None:
    found = parse_pattern(pattern)
    assert found is not None
    weight, rows = drawn(12, 64, 3), drawn(400, 64, 1).double() * torch.logspace(0, -2, 64)
    curvature, mask = Curvature.of_rows(rows.T @ rows, 12), pattern_mask(weight.abs(), found)
    exact = torch.zeros(12, 64, dtype=torch.float64)
    for row, kept in enumerate(mask):
        right = curvature.inputs[kept] @ weight[row].double()
        exact[row, kept] = torch.linalg.solve(curvature.inputs[kept][:, kept], right)
    solved = refit_rows(weight, mask, curvature)
    assert not solved[~mask].any()
    lost, least, masked = (curvature.cost(weight - one) for one in (solved, exact, weight * mask))
    assert lost < 1.0001 * least < 0.99 * masked


@pytest.mark.parametrize("columns", [96, 300])
def test_blocks_of_columns_change_no_mask(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = (
        drawn(16, columns),
        drawn(800, columns, 1) @ (torch.eye(columns) + 0.1 * drawn(columns, columns, 2)),
    )
    curvature, masks = Curvature.of_rows(inputs.T @ inputs, 16), []
    for at_once in (1, 40, columns):
        monkeypatch.setattr(sparsegpt_module, "COLUMNS_AT_ONCE", at_once)
        masks.append(sparsegpt_mask(weight, curvature, pattern_mask, TWO_OF_FOUR.span))
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], pattern_mask(weight.abs()))


def test_refit_is_the_least_squares_solution() -> None:
    weight, inputs = drawn(3, 8), drawn(50, 8, 1)
    mask = pattern_mask(weight.abs())
    curvature = Curvature.of_rows(inputs.T @ inputs, 3)
    gradient = curvature.gradient(refit(weight, mask, curvature) - weight)
    assert gradient[mask].abs().max() < 1e-3 * gradient[~mask].abs().max()


@pytest.mark.parametrize(("score", "fit", "draws"), [("wanda", 20, 0), ("wanda", 400, 0), ("kfac", 400, 3)])
def test_a_score_sees_images_of_all_classes(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch, score: Any,
    fit: int, draws: int,
) -> None:  # fmt: skip
    """Calibration images are sorted by class; those that fit into memory must not all be of the first class. A joint
    score uses at least 1,024 gradients."""
    context = digits_context(tiny_graph, calibration=400)
    by_class = context.data.calibration.subset(sorted(range(400), key=context.data.calibration.labels.__getitem__))
    context = replace(context, data=replace(context.data, calibration=by_class))
    seen: list[Any] = []

    def solver(images: torch.Tensor, *_: Any, **keys: Any) -> LayerSolver:
        seen.extend((images, keys["draws"]))
        raise StageError("seen enough")

    if fit < len(by_class):
        monkeypatch.setattr(scores, "solvable_images", lambda *_: fit)
    monkeypatch.setattr(scores, "LayerSolver", solver)
    with pytest.raises(StageError, match="seen enough"):
        TwoFourStage(TwoFour(method="two-four", score=score)).apply(tiny_graph, context)
    expected = by_class.balanced(fit)
    assert seen[1] == draws
    assert torch.equal(seen[0], torch.stack([expected[i][0] for i in range(fit)]))
    assert len(set(expected.labels)) == 10


def sketch_names(graph: ModelGraph) -> list[str]:
    return [layer.weight for layer in sketch(graph).linears if layer.role != "head"]


def logits(graph: ModelGraph, context: StageContext) -> torch.Tensor:
    with torch.no_grad():
        return graph.module(torch.stack([context.data.val[i][0] for i in range(40)]))


@pytest.mark.parametrize(
    "keys",
    [*({"score": score} for score in SCORES), {"pattern": "1:4"}, {"pattern": "4:8"}],
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


def test_a_model_of_one_class_uses_the_gradient_of_its_logit(
    tiny_graph: ModelGraph, tiny_kwargs: dict[str, Any], digits_context: Callable[..., StageContext]
) -> None:
    """The probability of a single class is always 1, and its gradient 0."""
    one = trace_timm("vit_tiny_patch16_224", {**tiny_kwargs, "num_classes": 1})
    context = digits_context(tiny_graph)
    reference = logits(one, context)
    stages = {score: TwoFourStage(TwoFour(method="two-four", score=score)) for score in ("wanda", "kfac")}
    found = {k: sqnr_db(reference, logits(stage.apply(one, context).graph, context)) for k, stage in stages.items()}
    assert found["kfac"] > found["wanda"] + 3


def test_each_score_stays_closer_to_the_dense_model(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    context = digits_context(tiny_graph, calibration=100)
    reference = logits(tiny_graph, context)
    given = MaskInputs(tiny_graph, sketch_names(tiny_graph), TWO_OF_FOUR, context)
    found = {}
    for name, score in {**SCORES, "alps": by_layer(kfac, "alps")}.items():  # without the curvature of outputs
        masks, solved = score(given)
        found[name] = sqnr_db(reference, logits(mask_weights(solved, "2:4", masks), context))
    assert min(found["sparsegpt"], found["alps"]) > max(found["magnitude"], found["wanda"])
    assert found["kfac"] > found["alps"] + 3


def test_scores_by_layer_refuse_grouped_convolutions() -> None:
    graph = trace_timm("test_convnext", {"num_classes": 10})
    convolutions = {w: argument(nodes[0], 6, "groups", 1) for w, nodes in layer_nodes(graph.module).items()}
    grouped = [weight for weight, groups in convolutions.items() if groups > 1]
    assert grouped
    with pytest.raises(StageError, match="grouped convolutions"):
        refuse_grouped_convolutions(graph, grouped, "sparsegpt")


def test_a_pattern_that_removes_nothing_is_refused(tiny_graph: ModelGraph) -> None:
    (problem,) = TwoFourStage(TwoFour(method="two-four", pattern="4:4")).requires(sketch(tiny_graph))
    assert "removes no weight" in problem.message
    assert parse_pattern("2:4") == TWO_OF_FOUR
