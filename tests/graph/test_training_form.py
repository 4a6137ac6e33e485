"""The masked training form of a graph with predictors, compared with its deployed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx import Node

from vitslim.errors import StageError
from vitslim.graph.anatomy import find_anatomy, find_branches
from vitslim.graph.edits.insert_predictors import insert_predictors
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.masked_tokens import MASKED_SQUEEZE
from vitslim.graph.ops.squeeze import SQUEEZE_TOKENS
from vitslim.graph.trace import trace_timm
from vitslim.graph.training_form import TrainingForm, training_form

KEEP = {"blocks.1": 9, "blocks.2": 4}
METHODS = ("dtps", "dynamicvit")


@pytest.fixture(scope="module")
def kwargs(tiny_kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_kwargs, "depth": 3}


@pytest.fixture(scope="module")
def graph(kwargs: dict[str, Any]) -> ModelGraph:
    """A small ViT whose weights are large enough that tokens and attention differ."""
    return with_large_weights(trace_timm("vit_tiny_patch16_224", kwargs))


def with_large_weights(graph: ModelGraph) -> ModelGraph:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in graph.module.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5)
    return graph


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


def forms(graph: ModelGraph, method: str, keep: dict[str, int] | None = None) -> tuple[ModelGraph, TrainingForm]:
    deployed = insert_predictors(graph, keep or KEEP, method)
    return deployed, training_form(deployed)


def value_of(graph: ModelGraph, node: Node, x: torch.Tensor) -> torch.Tensor:
    """Return the value of a node of the graph, which is left unusable."""
    graph.module.graph.output_node().args = (node,)
    graph.module.recompile()
    with torch.no_grad():
        found: torch.Tensor = graph.module(x)
    return found


def kept_tokens(tokens: torch.Tensor, decision: torch.Tensor) -> torch.Tensor:
    """Gather the class token and the tokens that stay."""
    kept = torch.cat([torch.ones(len(decision), 1), decision], dim=1) > 0.5
    return tokens[kept].view(len(tokens), -1, tokens.shape[2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("vit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    ],
)
def test_logits_equal_those_of_the_deployed_model(
    name: str, extra: dict[str, Any], method: str, kwargs: dict[str, Any]
) -> None:
    deployed, form = forms(with_large_weights(trace_timm(name, {**kwargs, **extra})), method)
    assert form.blocks == ("blocks.1", "blocks.2")
    assert form.kept_fractions == (9 / 16, 4 / 16)
    for batch in (1, 3):
        with torch.no_grad():
            logits, (tokens,), decisions = form.module.eval()(images(batch))
            torch.testing.assert_close(logits, deployed.module(images(batch)), rtol=0, atol=1e-4)
        assert tokens.shape[1:] == form.token_shape
        assert [d.sum(dim=1).tolist() for d in decisions] == [[9.0] * batch, [4.0] * batch]


def test_squeezed_tokens_equal_those_of_the_deployed_model(graph: ModelGraph) -> None:
    deployed, form = forms(graph, "dtps", {"blocks.1": 9})
    x = images(3)
    _, _, (decision,) = form.module.eval()(x)
    (gathered,) = (n for n in deployed.module.graph.nodes if n.target is SQUEEZE_TOKENS)
    (masked,) = (n for n in form.graph.module.graph.nodes if n.target is MASKED_SQUEEZE)
    hosts = value_of(form.graph, masked, x)
    torch.testing.assert_close(kept_tokens(hosts, decision), value_of(deployed, gathered, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_block_outputs_equal_those_of_the_deployed_model(graph: ModelGraph, method: str) -> None:
    deployed, form = forms(graph, method)
    assert form.last_block == "blocks.2"
    with torch.no_grad():
        _, (tokens,), decisions = form.module.eval()(images(3))
    last = find_branches(deployed.module, find_anatomy(deployed).shapes)[-1].add
    expected = value_of(deployed, last, images(3))
    torch.testing.assert_close(kept_tokens(tokens, decisions[-1]), expected, rtol=0, atol=1e-4)


def test_both_forms_share_their_parameters(graph: ModelGraph) -> None:
    deployed, form = forms(graph, "dtps")
    theirs = dict(form.module.named_parameters())
    assert theirs.keys() == deployed.parameters().keys()
    assert all(weight is theirs[name] for name, weight in deployed.parameters().items())
    with torch.no_grad():
        before = deployed.module(images(2))
        theirs["vitslim.predictor.blocks.1.fc1.weight"].neg_()
        assert not torch.equal(deployed.module(images(2)), before)


def test_decisions_are_sampled_in_training_mode(graph: ModelGraph) -> None:
    _, form = forms(graph, "dtps")
    form.module.train()
    torch.manual_seed(0)
    first = form.module(images(2))[2]
    second = form.module(images(2))[2]
    torch.manual_seed(0)
    again = form.module(images(2))[2]
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert (first[1] <= first[0]).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [KEEP, {"blocks.0": 4, "blocks.1": 2}])
def test_gradients_reach_the_predictors_and_are_finite(graph: ModelGraph, method: str, keep: dict[str, int]) -> None:
    deployed, form = forms(graph, method, keep)
    form.module.train()
    for seed in range(5):
        torch.manual_seed(seed)
        logits, _, _ = form.module(images(4))
        deployed.module.zero_grad()
        logits.square().sum().backward()
        gradients = {name: weight.grad for name, weight in deployed.parameters().items()}
        assert all(g is not None and g.isfinite().all() for g in gradients.values())
    for block in keep:
        last = gradients[f"vitslim.predictor.{block}.fc4.weight"]
        assert last is not None
        assert last.abs().max() > 0


def test_a_pruned_model_has_a_training_form(graph: ModelGraph) -> None:
    pruned = slice_axes(insert_predictors(graph, KEEP, "dtps"), {"embed": range(48), "blocks.2.mlp": range(100)})
    with torch.no_grad():
        expected = pruned.module(images(3))
        torch.testing.assert_close(training_form(pruned).module.eval()(images(3))[0], expected, rtol=0, atol=1e-4)


def test_tokens_can_be_squeezed_by_attention_before_the_first_predictor(graph: ModelGraph) -> None:
    deployed = insert_predictors(insert_squeeze(graph, {"blocks.0": 12}), KEEP, "dtps")
    form = training_form(deployed)
    assert form.kept_fractions == (9 / 12, 4 / 12)
    with torch.no_grad():
        expected = deployed.module(images(3))
        torch.testing.assert_close(form.module.eval()(images(3))[0], expected, rtol=0, atol=1e-4)


def test_models_without_a_training_form_are_refused(graph: ModelGraph) -> None:
    with pytest.raises(StageError, match="no token predictors"):
        training_form(graph)
    mixed = insert_squeeze(insert_predictors(graph, {"blocks.1": 9}, "dtps"), {"blocks.2": 5})
    with pytest.raises(StageError, match="after the first predictor"):
        training_form(mixed)
    with pytest.raises(StageError, match=r"'blocks\.1' keeps one token"):
        training_form(insert_predictors(graph, {"blocks.1": 1}, "dtps"))


def test_the_training_form_runs_in_bfloat16(graph: ModelGraph) -> None:
    _, form = forms(graph, "dtps")
    form.module.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits, _, decisions = form.module(images(2))
    logits.float().sum().backward()
    assert decisions[0].dtype == torch.float32
    assert logits.isfinite().all()
