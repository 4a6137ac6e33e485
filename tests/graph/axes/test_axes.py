"""Axes of real models: names, permutation, wrong rules, and insertion of operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from vitslim.graph.axes import RULES, infer_axes
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import insert_fake_quant
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.graph.verify import MAX_ERROR, verify_axes


def prunable(graph: ModelGraph) -> dict[str, int]:
    return {axis.name: axis.size for axis in graph.axes.prunable}


def test_deit_tiny_has_49_axes(deit_tiny: ModelGraph) -> None:
    expected = {"embed": 192}
    for block in range(12):
        expected |= {f"blocks.{block}.{kind}": n for kind, n in (("heads", 3), ("qk", 64), ("v", 64), ("mlp", 768))}
    assert prunable(deit_tiny) == expected
    assert not deit_tiny.axes.unknown_ops
    for axis in deit_tiny.axes.axes:
        assert axis.frozen or axis.kind in {"embed", "heads", "qk", "v", "mlp"}


def test_sites_list_the_dimensions_of_an_axis(deit_tiny: ModelGraph) -> None:
    heads = {(site.parameter, site.dim): site.index for site in deit_tiny.axes["blocks.2.heads"].sites}
    assert set(heads) == {
        ("blocks.2.attn.qkv.weight", 0), ("blocks.2.attn.qkv.bias", 0), ("blocks.2.attn.proj.weight", 1)
    }  # fmt: skip
    expected = torch.arange(3).repeat_interleave(64).repeat(3)
    assert torch.equal(torch.from_numpy(heads["blocks.2.attn.qkv.weight", 0]), expected)
    qk = next(site for site in deit_tiny.axes["blocks.2.qk"].sites if site.parameter.endswith("qkv.weight"))
    assert (qk.index[384:] == -1).all()
    assert (qk.index[:64] == range(64)).all()


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("deit_tiny_patch16_224", 49),
        pytest.param("swin_tiny_patch4_window7_224", 52, marks=pytest.mark.slow),
        pytest.param("deit3_small_patch16_224", 49, marks=pytest.mark.slow),
        pytest.param("deit_tiny_distilled_patch16_224", 49, marks=pytest.mark.slow),
        ("vit_tiny_r_s16_p8_224", None),
        pytest.param("beit_base_patch16_224", 49, marks=pytest.mark.slow),
    ],
)
def test_permuting_every_axis_changes_no_output(name: str, axes: int | None) -> None:
    found = verify_axes(trace_timm(name, {}))
    assert found.max_error < MAX_ERROR
    assert axes is None or found.axes == axes


def _forgets_inputs(scope: Any, node: Any) -> Any:
    """A linear rule that does not tie its input to its weight."""
    x, weight = scope.of(node.args[0]), scope.of(node.args[1])
    return (*x[:-1], weight[0])


def _forgets_bias(scope: Any, node: Any) -> Any:
    """A norm rule that ties neither weight nor bias."""
    return scope.of(node.args[0])


def _forgets_second(scope: Any, node: Any) -> Any:
    """An addition that does not tie its operands to each other."""
    return max((scope.of(operand) for operand in node.all_input_nodes), key=len)


@pytest.mark.parametrize(
    ("operator", "broken"),
    [
        ("aten.linear.default", _forgets_inputs),
        ("aten.layer_norm.default", _forgets_bias),
        ("aten.add.Tensor", _forgets_second),
    ],
)
def test_a_broken_rule_is_caught(tiny_graph: ModelGraph, operator: str, broken: Any) -> None:
    assert verify_axes(tiny_graph).max_error < MAX_ERROR
    tiny_graph.axes = infer_axes(tiny_graph.module, tiny_graph.source.image, {**RULES, operator: broken})
    assert verify_axes(tiny_graph).max_error > 1000 * MAX_ERROR


def test_an_unknown_operator_freezes_only_its_axes(tiny_graph: ModelGraph) -> None:
    """The hidden units of one MLP enter an operator without a rule: only this axis is frozen, with the reason."""
    gelu = next(n for n in tiny_graph.module.graph.nodes if "gelu" in str(n.target))
    with tiny_graph.module.graph.inserting_after(gelu):
        strange = tiny_graph.module.graph.call_function(torch.ops.aten.logcumsumexp.default, (gelu, -1))
    gelu.replace_all_uses_with(strange, delete_user_cb=lambda user: user is not strange)
    tiny_graph.module.recompile()
    tiny_graph.forget_axes()
    assert "logcumsumexp" in tiny_graph.axes["blocks.0.mlp"].frozen if "blocks.0.mlp" in _names(tiny_graph) else True
    assert "blocks.0.mlp" not in prunable(tiny_graph)
    assert "blocks.1.mlp" in prunable(tiny_graph)
    assert tiny_graph.axes.unknown_ops == {"aten.logcumsumexp.default": 1}
    assert verify_axes(tiny_graph).max_error < MAX_ERROR


def _names(graph: ModelGraph) -> set[str]:
    return {axis.name for axis in graph.axes.axes}


def test_insertion_does_not_change_the_axes(tiny_graph: ModelGraph) -> None:
    before = prunable(tiny_graph)
    squeezed = insert_squeeze(tiny_graph, {"blocks.0": 7})
    assert prunable(squeezed) == before
    quantized = insert_fake_quant(squeezed, [FakeQuantSite(x.weight, 8, 8) for x in sketch(squeezed).linears])
    assert prunable(quantized) == before
    scale = "vitslim.q.blocks.0.mlp.fc1.weight_scale"
    assert scale in {site.parameter for site in quantized.axes["blocks.0.mlp"].sites}


def test_inference_takes_less_than_half_a_second(deit_tiny: ModelGraph) -> None:
    import time

    best = min(_seconds(deit_tiny.module, deit_tiny.source.image, time.process_time) for _ in range(5))
    assert best < 0.5


def _seconds(module: GraphModule, image: tuple[int, int, int], clock: Any) -> float:
    start: float = clock()
    infer_axes(module, image)
    return float(clock() - start)
