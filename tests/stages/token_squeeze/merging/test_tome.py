"""The ToMe stage: numbers of tokens, refusals before anything runs, the estimate, the cost, and later stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitslim.graph.edits.merge_tokens import KeptTokens, merge_tokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.sketch import ModelSketch, cost, sketch
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.stages import DepGraph, DiffRate, Etps, Ptq, StageConfig, Tome
from vitslim.stages.contract import StageContext
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.prune.depgraph.stage import DepGraphStage
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.stages.quantize.rotation import find_streams, rotate
from vitslim.stages.token_squeeze.merging.removal import removal_schedule, removals
from vitslim.stages.token_squeeze.merging.tome import TomeStage
from vitslim.stages.token_squeeze.stage import KeepBestStage


def tome(**keys: Any) -> TomeStage:
    return TomeStage(Tome(method="tome", **keys))


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


@given(st.integers(0, 40), st.integers(1, 24))
def test_both_schedules_have_the_same_total(remove: int, blocks: int) -> None:
    falling = removal_schedule(remove, blocks, decrease=True)
    assert removal_schedule(remove, blocks, decrease=False) == (remove,) * blocks
    assert sum(falling) == remove * blocks
    assert len(falling) == blocks
    assert all(abs(count - 2 * remove * (1 - i / max(1, blocks - 1))) <= 1 for i, count in enumerate(falling[:-1]))


def test_decreasing_schedule_of_thirteen_tokens() -> None:
    assert removal_schedule(13, 12, decrease=True) == (26, 24, 21, 19, 16, 15, 11, 10, 7, 5, 2, 0)


def test_thirteen_tokens_a_block_leave_the_published_numbers(deit_tiny_sketch: ModelSketch) -> None:
    planned = tome().estimate(deit_tiny_sketch)
    assert [planned.tokens_at(block) for block in planned.blocks] == list(range(184, 40, -13))


def gmacs_as_published(sketched: ModelSketch) -> float:
    """The published numbers count neither matching nor merging."""
    return sum(p.macs(sketched.axes) for p in sketched.matmuls if p.role != "squeeze") / 1e9


def test_published_macs_of_deit_tiny(deit_tiny_sketch: ModelSketch) -> None:
    planned = tome().estimate(deit_tiny_sketch)
    assert round(gmacs_as_published(planned), 2) == 0.73
    assert planned.cost().macs / 1e9 == pytest.approx(0.73, rel=0.02)


@pytest.mark.slow
def test_published_macs_of_deit_small() -> None:
    planned = tome().estimate(sketch(trace_timm("deit_small_patch16_224", {})))
    assert round(gmacs_as_published(planned), 2) == 2.70


def test_a_block_merges_at_most_half_of_its_patch_tokens() -> None:
    found = removals({"a": 16, "b": 16, "c": 16}, {"a": 5, "b": 7, "c": 7})
    assert [(removal.before, removal.merged) for removal in found.values()] == [(16, 5), (11, 5), (6, 3)]
    assert removals({"a": 16, "b": 4}, {"b": 1})["b"].before == 4


def test_apply_reports_its_changes(tiny_graph: ModelGraph, context: StageContext) -> None:
    stage = tome(remove=9)
    assert stage.requires(sketch(tiny_graph)) == []
    result = stage.apply(tiny_graph, context)
    capped = "at most half of the patch tokens, 9 were requested"
    assert [(note.layer, note.result, note.reason) for note in result.changes] == [
        ("blocks.0", "merged 8 of 16 patch tokens", capped), ("blocks.1", "merged 4 of 8 patch tokens", capped)
    ]  # fmt: skip
    assert result.metrics == {"patch_tokens.blocks.0": 8, "patch_tokens.blocks.1": 4}
    assert stage.ensures(tiny_graph, result.graph) == []
    assert [problem.where for problem in stage.ensures(tiny_graph, tiny_graph)] == ["blocks", "blocks"]
    assert cost(result.graph) == stage.estimate(sketch(tiny_graph)).cost()


def test_removing_nothing_is_the_identity(tiny_graph: ModelGraph, context: StageContext) -> None:
    stage = tome(remove=0)
    result = stage.apply(tiny_graph, context)
    assert result.graph.edits == ()
    assert [note.layer for note in result.skipped] == ["blocks.0", "blocks.1"]
    assert stage.ensures(tiny_graph, result.graph) == []
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(result.graph.module(images), tiny_graph.module(images))
    assert stage.estimate(sketch(tiny_graph)).cost() == cost(tiny_graph)


def test_a_second_stage_counts_from_the_tokens_of_the_first(tiny_graph: ModelGraph, context: StageContext) -> None:
    first = tome(blocks=(0,), remove=4).apply(tiny_graph, context).graph
    second = tome(blocks=(1,), remove=3)
    assert second.requires(sketch(first)) == []
    assert second.apply(first, context).metrics == {"patch_tokens.blocks.1": 9}
    etps = KeepBestStage(Etps(method="etps", blocks=(0,), keep_rate=0.75)).apply(tiny_graph, context).graph
    assert second.apply(etps, context).metrics == {"patch_tokens.blocks.1": 9}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"blocks": (2,)}, "block 2 does not exist: the model has 2 blocks, 0 to 1"),
        ({"blocks": ()}, "the list is empty"),
        ({"blocks": (1, 1)}, "twice"),
    ],
)
def test_recipes_that_do_not_fit(keys: dict[str, Any], words: str, tiny_graph: ModelGraph) -> None:
    (problem,) = tome(**keys).requires(sketch(tiny_graph))
    assert problem.where == "blocks"
    assert words in problem.message


def test_squeezes_that_exclude_one_another_are_refused(tiny_graph: ModelGraph, context: StageContext) -> None:
    def problem_of(stage: TomeStage | KeepBestStage, graph: ModelGraph) -> str:
        (problem,) = stage.requires(sketch(graph))
        return problem.message

    etps = {block: KeepBestStage(Etps(method="etps", blocks=(block,), keep_rate=0.75)) for block in (0, 1)}
    merged = tome(blocks=(0,), remove=4).apply(tiny_graph, context).graph
    assert "block 0 is already squeezed" in problem_of(tome(), merged)
    assert "block 0 is already squeezed" in problem_of(etps[0], merged)
    assert etps[1].requires(sketch(merged)) == []
    squeezed = etps[1].apply(tiny_graph, context).graph
    assert "'blocks.0' comes before 'blocks.1'" in problem_of(tome(blocks=(0,)), squeezed)


def test_sizes_of_merged_tokens_must_reach_the_attentions_that_read_them(context: StageContext) -> None:
    graph = trace_timm("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3,
                                                "num_heads": 2, "num_classes": 5})  # fmt: skip
    etps = KeepBestStage(Etps(method="etps", blocks=(1,), keep_rate=0.75))
    merged = tome(blocks=(0,), remove=4)
    (problem,) = etps.requires(merged.estimate(sketch(graph)))
    assert "blocks after 'blocks.1' read the sizes" in problem.message
    assert "proportional_attention: false" in problem.hint
    assert etps.requires(sketch(merged.apply(graph, context).graph)) == [problem]
    unweighed = tome(blocks=(0,), remove=4, proportional_attention=False)
    assert etps.requires(unweighed.estimate(sketch(graph))) == []
    assert etps.requires(sketch(unweighed.apply(graph, context).graph)) == []


@pytest.mark.parametrize(
    ("before", "config"),
    [
        (Etps(method="etps", blocks=(3,)), Tome(method="tome")),
        (Tome(method="tome"), Etps(method="etps", blocks=(3,))),
        (Tome(method="tome"), DiffRate(method="diffrate")),
    ],
)
def test_a_recipe_that_squeezes_all_blocks_squeezes_no_block_again(before: StageConfig, config: StageConfig) -> None:
    problems = [problem.message for problem in config.problems((before,), ())]
    assert any("squeeze the same blocks" in message for message in problems)
    listed = Tome(method="tome", blocks=(0, 1))
    assert list(listed.problems((Etps(method="etps", blocks=(3,)),), ())) == []
    assert [p.message for p in listed.problems((Etps(method="etps", blocks=(1,)),), ())] == [
        "block 1 is already squeezed by stages.0"
    ]


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
def test_models_that_do_not_fit_are_refused_with_the_reason(name: str, kwargs: dict[str, Any], words: str) -> None:
    (problem,) = tome().requires(sketch(trace_timm(name, kwargs)))
    assert "token-squeeze" in problem.message
    assert words in problem.message


@pytest.mark.slow
def test_pruning_and_int8_after_merging(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext], tmp_path: Path
) -> None:
    context = digits_context(tiny_graph)
    merged = tome(remove=4).apply(tiny_graph, context).graph
    prune = DepGraphStage(DepGraph(method="depgraph"))
    pruned = prune.apply(merged, context).graph
    assert sketch(pruned).cost() == prune.estimate(sketch(merged)).cost()
    assert [sketch(pruned).tokens_at(f"blocks.{i}") for i in (0, 1)] == [13, 9]
    quantized = PtqStage(Ptq(method="ptq", attention=True)).apply(pruned, context).graph
    save_graph(quantized, tmp_path)
    images = next(iter(context.data.val.batches(7)))[0]
    with torch.no_grad():
        expected = quantized.module(images)
        assert torch.equal(load_graph(tmp_path).module(images), expected)
    export_onnx(quantized, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 2, 7):
        (logits,) = session.run(None, {"pixel_values": images[:batch].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected[:batch], rtol=0, atol=0.05)


@pytest.mark.parametrize("method", ["tome", "diffrate"])
def test_tokens_are_merged_alike_in_any_basis(tiny_graph: ModelGraph, method: str) -> None:
    survivors = 16 if method == "tome" else 14
    merged = merge_tokens(tiny_graph, method, {"blocks.0": KeptTokens(survivors, 10)})
    streams, fixed = find_streams(merged)
    assert [stream.name for stream in streams] == ["embed"]
    assert not fixed
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            rotate(merged, streams, seed=0).module(images), merged.module(images), rtol=1e-3, atol=1e-5
        )
