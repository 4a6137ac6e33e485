"""Recipes with simulated accelerators: checks, training under their approximations, and the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import vitslim
from vitslim.backends.registry import Simulated, parse_backend
from vitslim.backends.simulated.attention_layers import read_attention_layers
from vitslim.backends.simulated.fact.layer_work import layer_work
from vitslim.backends.simulated.fact.simulator import FactSimulator
from vitslim.backends.simulated.spatten.head_work import stated_counts
from vitslim.backends.simulated.spatten.simulator import SpattenSimulator
from vitslim.errors import RecipeError
from vitslim.graph.approximate import approximate, run_approximation
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph
from vitslim.pipeline.run.accelerator_runs import deployed_form
from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.pipeline.run.stored.keys import stage_key
from vitslim.recipe import validate
from vitslim.recipe.accelerators import SpattenSettings
from vitslim.recipe.stages import Distill
from vitslim.report import render_html, render_markdown
from vitslim.results.accelerator_counts import FactCounts, SpattenCounts
from vitslim.workload import read_workload

SPATTEN: dict[str, Any] = {
    "sim": "spatten", "model": "refined", "value": {"pruning_ratio": 0.3},
    "token": {"pruning_ratio": 0.3, "free_layers": 0.0}, "head": {"pruning_ratio": 0.5, "free_layers": 0.0},
}  # fmt: skip
EIGHTH = {**SPATTEN, "sim": "spatten-1/8"}
TRAIN = {"distill": {"teacher": "none", "approximate": "spatten",
                     "train": {"epochs": 1, "images": 32, "batch": 16, "lr": 1e-3}}}  # fmt: skip

PREDICTORS = {"distill": {**TRAIN["distill"], "teacher": "dense", "loss": {"ratio": 2}}}


def document(tiny_kwargs: dict[str, Any], stages: list[Any], backends: list[Any]) -> dict[str, Any]:
    return {
        "name": "accelerators",
        "model": {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs},
        "data": {"kind": "digits", "calibration": 16, "eval_images": 20},
        "stages": stages,
        "report": {"backends": backends},
    }


@pytest.fixture(scope="module")
def artifact(
    tiny_kwargs: dict[str, Any], run_recipe: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """Trained under SpAtten, written for ONNX Runtime: its file computes only the class token of the last block."""
    stages = [TRAIN, {"export": {"profile": "ort-cpu"}}]
    recipe = validate(document(tiny_kwargs, stages, [SPATTEN, EIGHTH, "sim:fact", "sim:a100"]))
    return run_recipe(recipe, tmp_path_factory.mktemp("accelerators") / "out")


def test_each_stage_has_accuracy_and_an_estimate_on_each_accelerator(artifact: Artifact) -> None:
    for stage in artifact.report.stages:
        assert len(stage.accelerators) == 3
        estimates = {one.backend: one for one in stage.estimates}
        for found in stage.accelerators:
            (accuracy,) = found.accuracies
            assert (accuracy.dataset, accuracy.n) == ("val", 20)
            assert accuracy.exact_top1 == stage.accuracies[0].metrics["top1"]
            assert 0 <= accuracy.agreement <= 1
            cycles = next(one for one in found.distributions if one.name == "cycles")
            assert cycles.minimum <= cycles.median <= cycles.maximum
            assert estimates[found.backend].cycles == pytest.approx(cycles.mean, abs=20)
            assert "20 images" in estimates[found.backend].settings["counts"]
            assert [row.layer for row in found.layers] == ["blocks.0", "blocks.1"]


def test_targets_with_equal_approximations_have_equal_accuracy_and_counts(artifact: Artifact) -> None:
    full, eighth, _ = artifact.report.stages[-1].accelerators
    assert full.accuracies == eighth.accuracies
    assert full.layers == eighth.layers


def test_pictures_show_the_pruned_tokens_of_each_layer(artifact: Artifact) -> None:
    spatten, _, fact = artifact.report.stages[-1].accelerators
    assert len(spatten.pictures) == len(fact.pictures) == 4
    assert [len(block.kept) for block in spatten.pictures[0].blocks] == [11]  # 12 of 17 tokens, one is the class token
    assert "INT4" in fact.picture_note


def test_reports_keep_exact_and_approximate_accuracy_apart(artifact: Artifact) -> None:
    page, summary = render_html(artifact.report), render_markdown(artifact.report)
    for words in ("Simulated accelerators that change results", "top-1 without approximations", "assumed key",
                  "Distributions over images", "cascade token pruning", "stated.columns"):  # fmt: skip
        assert (words in page) == (words != "stated.columns")
    assert 'href="#accelerator-0-0"' in page
    assert "points by its approximations" in summary


def halves(artifact: Artifact, backend: Any) -> tuple[Any, Any, Any]:
    """The simulator, the workload of the final file, and the counts of its graph."""
    parsed = parse_backend(backend)
    assert isinstance(parsed, Simulated)
    simulator: Any = parsed.simulator
    graph = load_graph(artifact.folder)
    workload = read_workload(artifact.onnx)
    images = torch.randn(4, *graph.source.image, generator=torch.Generator().manual_seed(0))
    found = approximate(graph, simulator.approximation, deployed_form(graph, workload))
    return simulator, workload, run_approximation(found, [images])[1]


def test_both_halves_of_spatten_agree_on_every_count(artifact: Artifact) -> None:
    simulator, workload, counts = halves(artifact, SPATTEN)
    assert isinstance(simulator, SpattenSimulator)
    assert isinstance(counts, SpattenCounts)
    model = read_attention_layers(workload)
    assert [layer.queries for layer in model.layers] == [17, 1]
    stated = stated_counts(model, simulator.approximation, 0.0)
    assert np.array_equal(counts.tokens_after, stated.tokens_after.repeat(4, axis=0))
    assert np.array_equal(counts.heads, stated.heads.repeat(4, axis=0))
    for name in ("queries", "keys", "values"):
        measured, expected = (np.sort(getattr(one, name), axis=2) for one in (counts, stated))
        assert np.array_equal(measured, expected.repeat(4, axis=0)), name
    assert (counts.value_rows <= stated.value_rows.max(axis=2, keepdims=True)).all()
    assert (counts.refetched <= counts.queries).all()


def test_both_halves_of_fact_agree_on_every_count(artifact: Artifact) -> None:
    dense = {"sim": "fact", "ep": {"topk_ratio": 1.0, "onehot_margin": None}, "ffn": {"hi_fraction": 0.0}}
    simulator, workload, counts = halves(artifact, dense)
    assert isinstance(simulator, FactSimulator)
    assert isinstance(counts, FactCounts)
    model = read_attention_layers(workload)
    for place, layer in enumerate(model.layers):
        assert (counts.entries[:, place] == layer.heads * layer.queries * layer.keys).all()
        assert (counts.rows[:, place] == layer.heads * layer.queries).all()
        assert (counts.columns[:, place] == layer.heads * layer.keys).all()
        assert (counts.high_tokens[:, place] == layer.mlp[0].m).all()
    work = layer_work(model, counts, simulator.spec)
    assert (work.effective_macs(2) <= work.dense_macs).all()
    pruned, _, fewer = halves(artifact, "sim:fact")
    assert (layer_work(model, fewer, pruned.spec).effective_macs(2) <= work.effective_macs(2)).all()


def test_the_key_of_a_stage_depends_on_the_approximations_that_it_trains_under() -> None:
    settings = parse_backend(SPATTEN).simulator.approximation  # type: ignore[union-attr]
    assert isinstance(settings, SpattenSettings)
    other = settings.model_copy(update={"value": settings.value.model_copy(update={"pruning_ratio": 0.1})})
    config = Distill(approximate="spatten")
    assert len({stage_key("x", config, one) for one in (None, settings, other)}) == 3


@pytest.mark.parametrize(
    ("stages", "backends", "message"),
    [
        ([TRAIN, "export"], ["sim:fact"], "no backend of the report has the approximations of spatten"),
        ([TRAIN, "export"], [SPATTEN, "sim:spatten-1/8"], "with different approximations"),
        (
            [{"token-squeeze": {"method": "dtps", "blocks": [1]}},
                 {"distill": {**TRAIN["distill"], "teacher": "dense", "loss": {"ratio": 2}}}, "export"],
            ["sim:spatten"],
            "token predictors are trained in a form that no accelerator computes",
        ),
        ([{"token-squeeze": {"method": "etps"}}, "export"], [{"sim": "spatten", "token": {"pruning_ratio": 0.1}}],
         "cascade token pruning cannot follow"),
        ([{"prune": {"method": "depgraph"}}, "export"], [{"sim": "spatten", "head": {"pruning_ratio": 0.1}}],
         "cascade head pruning needs the same heads"),
        ([{"prune": {"method": "nvit", "budget": {"macs": 0.8}}}, "export"], ["sim:spatten"],
         "`prune: nvit` may make them differ"),
        ([{"prune": {"method": "depgraph", "scope": "isomorphic"}}, "export"], ["sim:spatten"],
         "`prune: depgraph` may make them differ"),
        (["export"], [{"sim": "spatten", "token": {"pruning_ratio": 0.9}, "tokens": 1}], "tokens: unknown key"),
        (["export"], [{"sim": "fact", "ep": {"topk_ratio": 2}}], "ep.topk_ratio"),
    ],
)  # fmt: skip
def test_contradictions_are_refused_without_tracing(
    tiny_kwargs: dict[str, Any], stages: list[Any], backends: list[Any], message: str
) -> None:
    recipe = validate(document(tiny_kwargs, stages, backends))
    with pytest.raises(RecipeError) as caught:
        vitslim.build_plan(recipe, trace=False)
    assert any(message in problem.message for problem in caught.value.problems)


def test_plan_refuses_heads_whose_planned_q_and_v_differ(tiny_kwargs: dict[str, Any]) -> None:
    pruned = {"method": "depgraph", "mode": "bottleneck", "round_to": 4, "pruning_ratio": 0.5}
    recipe = validate(document(tiny_kwargs, [{"prune": pruned}, "export"], ["sim:fact", "sim:spatten"]))
    assert len(vitslim.build_plan(recipe).rows) == 3
    pruned = {**pruned, "axes": {"blocks.1.qk": 0.25}}
    with pytest.raises(RecipeError) as caught:
        vitslim.build_plan(validate(document(tiny_kwargs, [{"prune": pruned}, "export"], ["sim:fact", "sim:spatten"])))
    assert [problem.where for problem in caught.value.problems] == ["report.backends.1"]
    assert "'blocks.1' will have 24 and 16 columns" in caught.value.problems[0].message


def test_plan_refuses_a_model_that_an_accelerator_cannot_compute(tiny_kwargs: dict[str, Any]) -> None:
    parts = document(tiny_kwargs, ["export"], ["sim:spatten", "sim:fact", "sim:a100"])
    parts["model"] = {"timm": "resnet10t", "kwargs": {}}
    with pytest.raises(RecipeError) as caught:
        vitslim.build_plan(validate(parts))
    assert [problem.where for problem in caught.value.problems] == ["report.backends.0", "report.backends.1"]
    assert all("no attention" in problem.message for problem in caught.value.problems)


def test_graphs_without_unused_tokens_equal_their_file(tiny_graph: ModelGraph, artifact: Artifact) -> None:
    workload = read_workload(artifact.onnx)
    form = deployed_form(tiny_graph, workload)
    images = torch.randn(2, *tiny_graph.source.image, generator=torch.Generator().manual_seed(0))
    assert form is not tiny_graph
    assert torch.allclose(form.module.eval()(images), tiny_graph.module.eval()(images), atol=1e-5)
