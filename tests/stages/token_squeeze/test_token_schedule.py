"""Token schedules: costs of blocks, losses of blocks, the choice of counts, refusals, and whole stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.edits.insert_squeeze import InsertSqueeze, insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, attention_cuts, sketch
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.cost_target import CostTarget
from vitslim.recipe.stages import Etps, Evit, KeepBest, PruneOnly
from vitslim.stages.contract import Stage, StageContext
from vitslim.stages.registry import make_stage
from vitslim.stages.token_squeeze.schedule.choose import (
    KEEP_RATES,
    choose_schedule,
    kept_tokens,
    measured_counts,
    pair_losses,
    possible_counts,
    uniform_schedule,
)
from vitslim.stages.token_squeeze.schedule.cost_model import MACS
from vitslim.stages.token_squeeze.schedule.costs import ScheduleCosts, schedule_costs
from vitslim.stages.token_squeeze.schedule.sensitivity import measure_losses
from vitslim.stages.token_squeeze.schedule.solver import total
from vitslim.training.losses import soft_loss

Context = Callable[..., StageContext]
METHODS: dict[str, type[KeepBest]] = {"etps": Etps, "evit": Evit, "prune-only": PruneOnly}
THREE = {"img_size": 48, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2, "num_classes": 10}
PATCHES = 36


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    """Three blocks and 36 patches, with larger weights than at initialization so that squeezing changes the outputs."""
    torch.manual_seed(0)
    traced = trace_timm("vit_tiny_patch16_224", dict(THREE))
    with torch.no_grad():
        for parameter in traced.module.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return traced


@pytest.fixture(scope="module")
def dense(graph: ModelGraph) -> ModelSketch:
    return sketch(graph)


def stage_for(share: float, method: str = "etps", **keys: Any) -> Stage:
    return make_stage(METHODS[method](method=method, schedule=CostTarget(macs=share), **keys))  # type: ignore[arg-type]


def costs_of(dense: ModelSketch, method: str = "etps", added: int = 0) -> ScheduleCosts:
    return schedule_costs(
        dense, dense.blocks[:-1], possible_counts(PATCHES), partial(attention_cuts, method=method), MACS, added
    )


@pytest.mark.parametrize(("method", "added"), [("etps", 0), ("evit", 1), ("prune-only", 0)])
def test_the_cost_of_a_schedule_equals_that_of_the_sketch(method: str, added: int, dense: ModelSketch) -> None:
    costs = costs_of(dense, method, added)
    assert costs.dense == dense.cost().macs
    for levels in ((0, 20, 20), (5, 5, 5), (3, 31, 31)):
        kept = kept_tokens(levels, costs, added)
        assert costs.of(levels) == dense.with_squeeze(attention_cuts(dense, kept, method)).cost().macs
    assert costs.of((0, 0, 1)) == np.inf  # the last block is no candidate
    assert costs.least < 0.45 * costs.dense


def test_counts_fall_from_all_tokens_to_the_smallest_keep_rate() -> None:
    for patches in (1, 2, 16, 196, 576, 1024):
        counts = possible_counts(patches)
        assert counts[0] == patches
        assert counts[-1] == max(1, round(KEEP_RATES[-1] * patches))
        assert len(counts) <= 102
        assert list(counts) == sorted(set(counts), reverse=True)
    assert measured_counts(196) == (176, 137, 98, 59, 29)
    assert measured_counts(2) == (1,)


def test_losses_add_up_along_the_tokens_that_blocks_remove(dense: ModelSketch) -> None:
    costs = costs_of(dense)
    counts = measured_counts(PATCHES)
    losses = {"blocks.0": (0.1, 0.05, 0.4, 0.8, 1.6), "blocks.2": (0.0, 0.1, 0.2, 0.4, 0.8)}
    pairs = pair_losses(losses, costs, added=0)
    place = {count: level for level, count in enumerate(costs.counts)}
    many, few = place[20], place[10]
    assert [pairs[2, 0, costs.counts.index(count)] for count in counts] == pytest.approx(losses["blocks.2"])
    assert 0.1 < pairs[0, 0, many] < 0.4  # between those of 25 and 18 tokens
    assert pairs[2, 0, few] == pytest.approx(pairs[2, 0, many] + pairs[2, many, few])
    assert (np.diff(pairs[0, 0]) >= 0).all()
    assert not pairs[1].any()
    assert (pairs >= 0).all()


@pytest.mark.parametrize(("size", "patches"), [(8, 1), (24, 9)])
def test_a_fused_token_in_place_of_the_only_removed_one_costs_no_loss(size: int, patches: int) -> None:
    small = sketch(trace_timm("vit_tiny_patch16_224", THREE | {"img_size": size}))
    costs = schedule_costs(
        small, small.blocks[:-1], possible_counts(patches), partial(attention_cuts, method="evit"), MACS, 1
    )
    measured = np.arange(1.0, 1 + len(measured_counts(patches)))
    pairs = pair_losses({"blocks.0": tuple(measured)}, costs, added=1)
    assert pairs[0, 0, 0] == 0
    for count, loss in zip(measured_counts(patches), measured, strict=True):
        if count + 1 < patches:
            assert pairs[0, 0, costs.counts.index(count + 1)] == pytest.approx(loss)


def test_the_schedule_squeezes_insensitive_blocks_and_is_not_worse_than_a_uniform_rate(dense: ModelSketch) -> None:
    costs = costs_of(dense)
    curve = np.array([1 - rate for rate in KEEP_RATES]) ** 1.5
    pairs = pair_losses({"blocks.0": 9 * curve, "blocks.1": 0.01 * curve}, costs, added=0)
    for share in (0.9, 0.8, 0.7):
        chosen = choose_schedule(pairs, costs, share * costs.dense)
        uniform = uniform_schedule(costs, (0, 1), share * costs.dense)
        assert costs.of(chosen) <= share * costs.dense
        assert costs.of(uniform) <= share * costs.dense
        assert total(pairs, chosen) < total(pairs, uniform)
        assert list(kept_tokens(chosen, costs, 0)) == ["blocks.1"]


def test_a_convex_loss_stays_convex_between_the_measured_counts(dense: ModelSketch) -> None:
    costs = costs_of(dense)
    removed = 1 - np.array(costs.counts) / PATCHES
    measured = [(1 - count / PATCHES) ** 2 for count in measured_counts(PATCHES)]
    found = pair_losses({"blocks.1": measured}, costs, added=0)[1, 0]
    assert found == pytest.approx(removed**2, abs=0.01)
    straight = np.interp(removed, [0, *(1 - np.array(measured_counts(PATCHES)) / PATCHES)], [0, *measured])
    assert np.abs(found - removed**2).max() < 0.5 * np.abs(straight - removed**2).max()


def test_the_estimate_of_a_plan_has_one_keep_rate(dense: ModelSketch) -> None:
    costs = costs_of(dense)
    kept = kept_tokens(uniform_schedule(costs, (0, 1), 0.75 * costs.dense), costs, 0)
    assert kept["blocks.1"] / kept["blocks.0"] == pytest.approx(kept["blocks.0"] / PATCHES, abs=0.05)
    assert costs.of(uniform_schedule(costs, (0, 1), costs.least)) == costs.least
    assert list(kept_tokens(uniform_schedule(costs, (0,), 0.75 * costs.dense), costs, 0)) == ["blocks.0"]


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_a_block_is_that_of_the_whole_squeezed_model(
    method: str, graph: ModelGraph, digits_context: Context
) -> None:
    images = digits_context(graph).data.calibration.balanced(10)
    squeeze = partial(insert_squeeze, method=method)
    losses = measure_losses(graph, {"blocks.0": (30, 9), "blocks.1": (12,)}, squeeze, images, Silent())
    (batch,) = [x for x, _ in images.batches(16)]
    with torch.no_grad():
        expected = graph.module(batch).double()
        for name, count, found in (("blocks.0", 9, losses["blocks.0"][1]), ("blocks.1", 12, losses["blocks.1"][0])):
            direct = float(soft_loss(squeeze(graph, {name: count}).module(batch).double(), expected))
            assert found == pytest.approx(direct, rel=1e-4)
            assert found > 1e-5


def test_the_blocks_before_a_squeeze_run_once(graph: ModelGraph, digits_context: Context) -> None:
    squeezed: list[Mapping[str, int]] = []

    def squeeze(dense: ModelGraph, keep: Mapping[str, int]) -> ModelGraph:
        squeezed.append(keep)
        with torch.no_grad():
            new = insert_squeeze(dense, keep)
            new.parameters()["blocks.0.mlp.fc1.weight"].fill_(torch.nan)
        return new

    images = digits_context(graph).data.calibration.balanced(10)
    losses = measure_losses(graph, {"blocks.1": (20, 10)}, squeeze, images, Silent())
    assert squeezed == [{"blocks.1": 20}, {"blocks.1": 10}]
    assert np.isfinite(losses["blocks.1"]).all()
    with pytest.raises(StageError, match="not finite"):
        measure_losses(graph, {"blocks.0": (20,)}, squeeze, images, Silent())


@pytest.mark.parametrize("method", METHODS)
def test_a_scheduled_stage_meets_its_target(
    method: str, graph: ModelGraph, dense: ModelSketch, digits_context: Context
) -> None:
    stage = stage_for(0.75, method)
    assert stage.requires(dense) == []
    result = stage.apply(graph, digits_context(graph))
    assert stage.ensures(graph, result.graph) == []
    share = sketch(result.graph).cost().macs / dense.cost().macs
    assert 0.6 < share <= 0.75
    assert result.metrics["macs_share"] == pytest.approx(share, rel=1e-12)
    (edit,) = result.graph.edits
    assert isinstance(edit, InsertSqueeze)
    assert {f"patch_tokens.{name}": count for name, count in edit.keep.items()}.items() <= result.metrics.items()
    assert {"mean_kl.blocks.0", "mean_kl.blocks.1", "predicted_kl"} <= result.metrics.keys()
    assert {note.layer for note in (*result.changes, *result.skipped)} == {"blocks.0", "blocks.1"}
    assert all("patch tokens" in note.result and "nats" in note.reason for note in result.changes)
    assert result.metrics["calibration_images"] == 40


def test_only_the_named_blocks_squeeze_and_the_result_repeats(graph: ModelGraph, digits_context: Context) -> None:
    stage = stage_for(0.8, blocks=(1,))
    first, second = (stage.apply(graph, digits_context(graph)) for _ in range(2))
    assert {note.layer for note in (*first.changes, *first.skipped)} == {"blocks.1"}
    assert first.metrics == second.metrics
    assert first.graph.edits == second.graph.edits


def test_the_estimate_meets_the_target_and_is_approximate(dense: ModelSketch) -> None:
    estimate = stage_for(0.75).estimate(dense)
    assert estimate.data_dependent
    assert 0.7 < estimate.cost().macs / dense.cost().macs <= 0.75


@pytest.mark.parametrize(
    ("share", "keys", "where", "words"),
    [
        (0.05, {}, "schedule.macs", "0.05 of the MACs cannot be reached: 0.3"),
        (0.6, {"blocks": (2,)}, "schedule.macs", "0.6 of the MACs cannot be reached: 0.8"),
        (0.6, {"blocks": (1, 3)}, "blocks", "block 3 does not exist"),
        (0.6, {"blocks": ()}, "blocks", "the list is empty"),
    ],
)
def test_schedules_that_do_not_fit_the_model(
    share: float, keys: dict[str, Any], where: str, words: str, dense: ModelSketch
) -> None:
    (problem,) = stage_for(share, **keys).requires(dense)
    assert problem.where == where
    assert words in problem.message


def test_the_smallest_reachable_target_is_reached(dense: ModelSketch) -> None:
    costs = costs_of(dense)
    assert stage_for(costs.least / costs.dense).requires(dense) == []
    chosen = choose_schedule(np.ones_like(costs.cost), costs, costs.least)
    assert costs.of(chosen) == costs.least
    with pytest.raises(ValueError, match="more than the budget"):
        choose_schedule(np.ones_like(costs.cost), costs, costs.least - 1)


def test_a_squeezed_model_is_refused(graph: ModelGraph) -> None:
    (problem,) = stage_for(0.7).requires(sketch(insert_squeeze(graph, {"blocks.1": 20})))
    assert problem.where == "schedule"
    assert "an earlier stage squeezes tokens" in problem.message


def test_a_schedule_needs_images(graph: ModelGraph, digits_context: Context) -> None:
    context = digits_context(graph)
    empty = replace(context.data, calibration=context.data.calibration.subset([]))
    with pytest.raises(StageError, match="needs calibration images"):
        stage_for(0.7).apply(graph, replace(context, data=empty))
