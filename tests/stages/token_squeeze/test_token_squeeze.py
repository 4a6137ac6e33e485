"""The eTPS stage: token counts, refusals before anything runs, the estimate, and the cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, attention_cuts, cost, sketch
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.stages import Etps, Evit, KeepBest, PruneOnly
from vitslim.stages.contract import StageContext
from vitslim.stages.token_squeeze.counts import token_counts
from vitslim.stages.token_squeeze.stage import KeepBestStage

DEIT_BLOCKS = ("blocks.3", "blocks.6", "blocks.9")
COST_TABLE = {
    0.9: ((176, 158, 142), 1.08, 3.96, 15.2),
    0.8: ((156, 125, 100), 0.93, 3.43, 13.2),
    0.7: ((137, 96, 67), 0.81, 2.99, 11.4),
    0.6: ((117, 70, 42), 0.71, 2.60, 9.9),
    0.5: ((98, 49, 24), 0.62, 2.28, 8.7),
    0.4: ((78, 31, 12), 0.55, 2.01, 7.7),
    0.3: ((58, 17, 5), 0.49, 1.79, 6.8),
}
"""Keep rate to counts and GMACs of DeiT-T, S and B (TPS, CVPR 2023)."""


@pytest.fixture(scope="module")
def deit_tiny_sketch(deit_tiny: ModelGraph) -> ModelSketch:
    return sketch(deit_tiny)


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    """A context without data and earlier results, which the stage does not use."""
    return StageContext(
        data=None,  # type: ignore[arg-type]
        seed=0, progress=Silent(), result=lambda name: pytest.fail(f"requested {name}"), workdir=tmp_path,
    )  # fmt: skip


def etps(**keys: Any) -> KeepBestStage:
    return KeepBestStage(Etps(method="etps", **keys))


def test_published_counts_of_evit_include_the_fused_token() -> None:
    counts = token_counts(dict.fromkeys(DEIT_BLOCKS, 196), dict.fromkeys(DEIT_BLOCKS, 0.7), "ceil", added=1)
    assert [count.after + 1 for count in counts.values()] == [139, 99, 71]


def test_a_list_has_a_keep_rate_for_each_block(tiny_graph: ModelGraph) -> None:
    stage = etps(blocks=(0, 1), keep_rate=(0.75, 0.5))
    assert stage.estimate(sketch(tiny_graph)).tokens_at("blocks.0") == 1 + 12
    assert stage.estimate(sketch(tiny_graph)).tokens == 1 + 6
    (problem,) = Etps(method="etps", blocks=(0, 1), keep_rate=(0.75,)).problems((), ())
    assert (problem.where, problem.message) == ("keep_rate", "got 1 keep rates for 2 blocks")


@pytest.mark.parametrize(("config", "tokens"), [(Evit, 1 + 10 + 1), (PruneOnly, 1 + 9)])
def test_baselines_keep_the_planned_tokens(
    config: type[KeepBest], tokens: int, tiny_graph: ModelGraph, context: StageContext
) -> None:
    method = {Evit: "evit", PruneOnly: "prune-only"}[config]
    stage = KeepBestStage(config(method=method, blocks=(0, 1), keep_rate=0.7))
    result = stage.apply(tiny_graph, context)
    assert stage.requires(sketch(tiny_graph)) == stage.ensures(tiny_graph, result.graph) == []
    assert stage.estimate(sketch(tiny_graph)).cost() == cost(result.graph)
    assert sketch(result.graph).tokens == tokens


def test_published_counts() -> None:
    present = dict.fromkeys(DEIT_BLOCKS, 196)
    after = {
        rounding: [count.after for count in token_counts(present, dict.fromkeys(DEIT_BLOCKS, 0.7), rounding).values()]
        for rounding in ("ceil", "floor")
    }
    assert after == {"ceil": [138, 97, 68], "floor": [137, 95, 66]}


def test_counts_are_exact_where_floats_are_not() -> None:
    assert token_counts({"a": 100}, {"a": 0.07}, "ceil")["a"].after == 7
    assert token_counts({"a": 100}, {"a": 0.29}, "floor")["a"].after == 29


def gmacs_as_published(dense: ModelSketch, counts: tuple[int, ...]) -> float:
    """The table counts the matching, and neither the fusion nor the class token's row of attention."""
    squeezed = dense.with_squeeze(attention_cuts(dense, dict(zip(DEIT_BLOCKS, counts, strict=True))))
    unpublished = (".fusion", ".class_attention")
    return sum(p.macs(squeezed.axes) for p in squeezed.matmuls if not p.name.endswith(unpublished)) / 1e9


@pytest.mark.parametrize("keep", list(COST_TABLE))
def test_cost_table_of_deit_tiny(keep: float, deit_tiny_sketch: ModelSketch) -> None:
    counts, published, _, _ = COST_TABLE[keep]
    assert gmacs_as_published(deit_tiny_sketch, counts) == pytest.approx(published, rel=0.01)


def test_whole_cost_at_keep_07_is_within_a_percent(deit_tiny_sketch: ModelSketch) -> None:
    keep = dict(zip(DEIT_BLOCKS, COST_TABLE[0.7][0], strict=True))
    squeezed = deit_tiny_sketch.with_squeeze(attention_cuts(deit_tiny_sketch, keep))
    assert squeezed.cost().macs / 1e9 == pytest.approx(0.81, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "column"), [("deit_small_patch16_224", 2), ("deit_base_patch16_224", 3)])
def test_cost_table_of_larger_models(name: str, column: int) -> None:
    dense = sketch(trace_timm(name, {}))
    for row in COST_TABLE.values():
        assert gmacs_as_published(dense, row[0]) == pytest.approx(row[column], rel=0.01)


def test_the_estimate_equals_the_result_of_squeezing(deit_tiny: ModelGraph, deit_tiny_sketch: ModelSketch) -> None:
    stage = etps()
    estimate = stage.estimate(deit_tiny_sketch)
    built = insert_squeeze(deit_tiny, {"blocks.3": 138, "blocks.6": 97, "blocks.9": 68})
    assert cost(built) == estimate.cost()
    assert estimate.tokens == 69
    assert sketch(built).squeezed == estimate.squeezed == DEIT_BLOCKS


def test_apply_reports_its_changes(tiny_graph: ModelGraph, context: StageContext) -> None:
    stage = etps(blocks=(1, 0), keep_rate=0.7)
    assert stage.requires(sketch(tiny_graph)) == []
    result = stage.apply(tiny_graph, context)
    notes = [(note.layer, note.result) for note in result.changes]
    assert notes == [("blocks.0", "kept 12 of 16 patch tokens"), ("blocks.1", "kept 9 of 12 patch tokens")]
    assert all("assumed" in note.reason for note in result.changes)
    assert result.metrics == {"patch_tokens.blocks.0": 12, "patch_tokens.blocks.1": 9}
    assert stage.ensures(tiny_graph, result.graph) == []
    assert [problem.where for problem in stage.ensures(tiny_graph, tiny_graph)] == ["blocks", "blocks"]
    assert result.graph.module(torch.randn(3, 3, 32, 32)).shape == (3, 10)


def test_keep_one_is_the_identity(tiny_graph: ModelGraph, context: StageContext) -> None:
    stage = etps(blocks=(0, 1), keep_rate=1.0)
    result = stage.apply(tiny_graph, context)
    assert result.graph.edits == ()
    assert [note.layer for note in result.skipped] == ["blocks.0", "blocks.1"]
    assert stage.ensures(tiny_graph, result.graph) == []
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(result.graph.module(images), tiny_graph.module(images))


def test_a_second_stage_counts_from_the_tokens_of_the_first(tiny_graph: ModelGraph, context: StageContext) -> None:
    first = etps(blocks=(0,), keep_rate=0.5).apply(tiny_graph, context).graph
    second = etps(blocks=(1,), keep_rate=0.5)
    assert second.requires(sketch(first)) == []
    assert second.apply(first, context).metrics == {"patch_tokens.blocks.1": 4}
    (problem,) = etps(blocks=(0,), keep_rate=0.5).requires(sketch(first))
    assert "already squeezed" in problem.message


@pytest.mark.parametrize(
    ("keys", "where", "words"),
    [
        ({}, "blocks", "block 3 does not exist: the model has 2 blocks, 0 to 1"),
        ({"blocks": ()}, "blocks", "the list is empty"),
        ({"blocks": (1, 1)}, "blocks", "twice"),
        ({"blocks": (0,), "keep_rate": 0.05, "rounding": "floor"}, "keep_rate", "0 of 16"),
    ],
)
def test_recipes_that_do_not_fit(keys: dict[str, Any], where: str, words: str, tiny_graph: ModelGraph) -> None:
    problem = etps(**keys).requires(sketch(tiny_graph))[0]
    assert problem.where == where
    assert words in problem.message


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 56, "embed_dim": 32, "depths": (2, 1), "num_heads": (2, 4), "num_classes": 5},
            "attends within windows",
        ),
        ("beit_base_patch16_224", {"depth": 2, "embed_dim": 64, "num_heads": 2, "num_classes": 5}, "pair of positions"),
    ],
)
def test_models_that_do_not_fit_are_refused_with_stage_and_reason(
    name: str, kwargs: dict[str, Any], words: str
) -> None:
    (problem,) = etps(blocks=(0,)).requires(sketch(trace_timm(name, kwargs)))
    assert "token-squeeze" in problem.message
    assert words in problem.message
