"""Verification finds wrong rules, also where the initial weights of a model would hide them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx import Node

from vitslim.errors import StageError
from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.axes import RULES
from vitslim.graph.axes.scope import Scope
from vitslim.graph.axes.terms import Dims
from vitslim.graph.edits.slice import resize_tokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.graph.verify import MAX_ERROR, verify_axes


def _forgets_columns(scope: Scope, node: Node) -> Dims:
    """An embedding rule that does not tie the columns of the table to those of the result."""
    return (*RULES["aten.index.Tensor"](scope, node)[:-1], *scope.fresh(scope.shape(node)[-1:]))  # type: ignore[misc]


def _forgets_factor(scope: Scope, node: Node) -> Dims:
    """A multiplication rule that does not tie its operands."""
    return max((scope.of(operand) for operand in node.all_input_nodes), key=len)


def test_a_table_of_zeros_does_not_hide_a_wrong_rule(tiny_kwargs: dict[str, Any]) -> None:
    graph = trace_timm("beit_base_patch16_224", tiny_kwargs)
    assert verify_axes(graph).max_error < MAX_ERROR
    assert verify_axes(graph, rules={**RULES, "aten.index.Tensor": _forgets_columns}).max_error > 100 * MAX_ERROR


def test_a_layer_scale_near_zero_does_not_hide_a_wrong_rule(tiny_kwargs: dict[str, Any]) -> None:
    graph = trace_timm("deit3_small_patch16_224", tiny_kwargs)
    assert verify_axes(graph, rules={**RULES, "aten.mul.Tensor": _forgets_factor}).max_error > 100 * MAX_ERROR


def test_axes_one_by_one(tiny_graph: ModelGraph) -> None:
    found = verify_axes(tiny_graph, each_axis=True)
    assert set(found.errors) == {axis.name for axis in tiny_graph.axes.prunable}
    assert max(found.errors.values()) < MAX_ERROR
    assert verify_axes(tiny_graph) == verify_axes(tiny_graph)


def test_verifying_does_not_change_the_graph(tiny_graph: ModelGraph) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_graph.module.state_dict().items()}
    verify_axes(tiny_graph)
    after = tiny_graph.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("beit_base_patch16_224", {}, "attn.relative_position_index' has an entry for each token"),
        ("vit_small_patch16_rope_224", {}, "has an entry for each token"),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, ""),
    ],
)
def test_tokens_tied_to_positions_cannot_be_squeezed(
    name: str, kwargs: dict[str, Any], message: str, tiny_kwargs: dict[str, Any]
) -> None:
    graph = trace_timm(name, {**tiny_kwargs, **kwargs})
    residual = find_anatomy(graph).blocks[0].attention_residual
    assert residual is not None
    written = graph.module.code
    if not message:
        resize_tokens(graph, residual, 9)
        assert graph.module.code != written
        return
    with pytest.raises(StageError, match=message):
        resize_tokens(graph, residual, 9)
    assert graph.module.code == written


def test_windows_cannot_be_squeezed() -> None:
    graph = trace_timm(
        "swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 32, "depths": (2, 1), "num_heads": (2, 4)}
    )
    norm = next(node for node in graph.module.graph.nodes if "layer_norm" in str(node.target))
    with pytest.raises(StageError, match="tokens cannot be squeezed"):
        resize_tokens(graph, norm, 9)
