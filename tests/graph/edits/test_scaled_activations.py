"""Activations scaled per channel and divided per token: graphs with the same outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Interpreter

from vitslim.errors import StageError
from vitslim.graph.edits.divide_tokens import divide_tokens, divided_layers
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.edits.scale_activations import scale_activations
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, tensor_of
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm

FC2 = [f"blocks.{block}.mlp.fc2.weight" for block in (0, 1)]


def same(first: ModelGraph, second: ModelGraph, batch: int = 3) -> None:
    images = torch.randn(batch, *first.source.image, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(first.module(images), second.module(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("floor", [1e-3, 50.0])
def test_dividing_tokens_changes_no_output(tiny_graph: ModelGraph, floor: float) -> None:
    divided = divide_tokens(tiny_graph, dict.fromkeys(FC2, floor))
    same(divided, tiny_graph)
    assert divided_layers(divided) == set(FC2) and not divided_layers(tiny_graph)
    assert sketch(divided).cost().macs == sketch(tiny_graph).cost().macs
    inputs = [argument(layer_nodes(divided.module)[weight][0], 0) for weight in FC2]
    seen: dict[Any, Tensor] = {}

    class Watching(Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if n in inputs:
                seen[n] = result
            return result

    Watching(divided.module).run(torch.randn(2, *tiny_graph.source.image))
    largest = [float(x.detach().abs().amax()) for x in seen.values()]
    assert max(largest) == pytest.approx(1) if floor < 1 else max(largest) < 1


def test_the_bias_of_a_divided_layer_moves_its_outputs_by_the_size_of_each_token(tiny_graph: ModelGraph) -> None:
    divided = divide_tokens(tiny_graph, {FC2[1]: 1.0})
    with torch.no_grad():
        tensor_of(divided.module, "vitslim.d.blocks.1.mlp.fc2.bias")[0] += 0.5
    with pytest.raises(AssertionError):
        same(divided, tiny_graph)


def test_layers_that_read_one_tensor_share_a_multiplication_or_a_division() -> None:
    """Runtimes would merge equal ones, and then fuse neither layer with its quantizer."""
    graph = trace_timm("xcit_nano_12_p16_224", {"depth": 1, "num_classes": 10})
    weights = [f"cls_attn_blocks.0.attn.{name}.weight" for name in ("v", "k", "q")]
    generator = torch.Generator().manual_seed(0)
    factors = {weight: torch.rand(128, generator=generator) + 0.5 for weight in weights}
    for changed in (scale_activations(graph, weights, factors), divide_tokens(graph, dict.fromkeys(weights, 0.1))):
        inputs = {weight: argument(layer_nodes(changed.module)[weight][0], 0) for weight in weights}
        assert inputs[weights[0]] is inputs[weights[1]] is not inputs[weights[2]]
        with torch.no_grad():
            images = torch.randn(2, *graph.source.image, generator=generator)
            torch.testing.assert_close(changed.module(images), graph.module(images), rtol=1e-3, atol=1e-4)


def test_scaling_activations_changes_no_output_and_unknown_layers_are_refused(tiny_graph: ModelGraph) -> None:
    weight = "blocks.1.mlp.fc2.weight"
    factors = torch.rand(tiny_graph.parameters()[weight].shape[1], generator=torch.Generator().manual_seed(0)) + 0.1
    scaled = scale_activations(tiny_graph, [weight], {weight: factors})
    images = torch.randn(4, *tiny_graph.source.image, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(scaled.module(images), tiny_graph.module(images), rtol=1e-4, atol=1e-5)
    assert sketch(scaled).cost() == sketch(tiny_graph).cost()
    with pytest.raises(StageError, match="no layer has a weight"):
        scale_activations(tiny_graph, ["blocks.9.mlp.fc2.weight"])


def test_unknown_and_nonlinear_layers_are_refused(tiny_graph: ModelGraph) -> None:
    with pytest.raises(StageError, match=r"no linear layer has a weight 'blocks\.9") as found:
        divide_tokens(tiny_graph, {"blocks.9.mlp.fc2.weight": 1.0})
    assert "mlp.fc2" in str(found.value.hint)
    with pytest.raises(StageError, match="no linear layer"):
        divide_tokens(tiny_graph, {"patch_embed.proj.weight": 1.0})
