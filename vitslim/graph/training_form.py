"""The form of a graph with token predictors in which the predictors can be trained.

The deployed graph gathers the tokens that stay, so no gradient reaches the scores. The training form keeps the sequence
at full length and hides dropped tokens with masks: the squeeze, every later attention and every later average over
tokens use the decisions of the predictors. Both forms share their parameters. In evaluation mode the training form
keeps the same tokens as the deployed graph and computes the same logits, up to the epsilon of masked attention.
Sources: DynamicViT (Rao et al., NeurIPS 2021), TPS (Wei et al., CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from vitslim.errors import StageError
from vitslim.graph.anatomy import descendants, find_anatomy, find_branches
from vitslim.graph.anatomy.attention import Attention, find_attentions
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.edits.insert_predictors import Predictor, find_predictors
from vitslim.graph.edits.slice import resize_tokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, shared_copy
from vitslim.graph.ops.masked_tokens import (
    MASKED_KEEP,
    MASKED_MEAN,
    MASKED_SQUEEZE,
    POLICY_ATTENTION,
    RANKED_DECISION,
    ranked_decision,
    sampled_decision,
)
from vitslim.graph.ops.squeeze import KEEP_TOKENS, SQUEEZE_TOKENS

aten = torch.ops.aten

MASKED: Mapping[Any, Any] = MappingProxyType({SQUEEZE_TOKENS: MASKED_SQUEEZE, KEEP_TOKENS: MASKED_KEEP})
"""Operator that removes tokens to the operator that hides them."""

KEPT_MIN = 2
"""Fewest tokens that a predictor may keep."""


@dataclass(frozen=True)
class TrainingForm:
    """The training form of one graph."""

    graph: ModelGraph
    """Its module keeps the best tokens, in both modes. It maps images to (logits (B, classes), (tokens (B, prefix +
    patches, C),), decisions (B, patches) of each predictor). The tokens are the output of `last_block`; decisions are
    1.0 for tokens that stay and 0.0 for others."""
    blocks: tuple[str, ...]
    """The block of each predictor."""
    kept_fractions: tuple[float, ...]
    """Fraction of the patch tokens before the first predictor that the deployed graph keeps after each predictor."""
    last_block: str
    """The last block whose output has all tokens."""
    token_shape: tuple[int, ...]
    """Number of tokens, prefix tokens included, and channels of that output."""

    @cached_property
    def module(self) -> GraphModule:
        """The module of `graph`, whose decisions are sampled in training mode."""
        return with_sampled_decisions(self.graph.module)


class Decision(nn.Module):
    """Chooses tokens: sampled in training mode, the best ones in evaluation mode."""

    def __init__(self, keep: int) -> None:
        """keep: tokens that stay in evaluation mode."""
        super().__init__()
        self.keep = keep

    def forward(self, logits: Tensor, score: Tensor, previous: Tensor | None) -> Tensor:
        """Return (B, N) of zeros and ones; see `sampled_decision` and `ranked_decision`."""
        return sampled_decision(logits, previous) if self.training else ranked_decision(score, previous, self.keep)


def training_form(graph: ModelGraph) -> TrainingForm:
    """Return the training form of a graph with predictors; it shares all parameters with the graph.

    Raises StageError for a graph without predictors, for another token squeeze after the first predictor, and for
    attention with a bias or a mask after it.
    """
    form = replace(graph, module=shared_copy(graph.module), masks={})
    predictors = find_predictors(form.module)
    _require_only_predictors(predictors)
    shapes = form.axes.shapes
    length, prefix = shapes[predictors[0].source][1], find_anatomy(form).prefix_tokens
    kept = [_require_several(p, shapes[p.squeeze][1] - prefix) for p in predictors]
    decisions: list[Node] = []
    streams: list[Node] = []
    for predictor in predictors:
        decision, masked = _mask(form, predictor, decisions[-1] if decisions else None, length)
        decisions.append(decision)
        streams.append(masked)
    for masked, decision in zip(reversed(streams), reversed(decisions), strict=True):
        _hide_dropped(form, masked, decision)
    last_block, tokens = _last_block(form, length)
    token_shape = form.axes.shape(tokens)
    form.module.graph.output_node().args = ((form.module.graph.output_node().args[0], (tokens,), tuple(decisions)),)
    _changed(form)
    fractions = tuple(count / (length - prefix) for count in kept)
    return TrainingForm(form, tuple(p.block for p in predictors), fractions, last_block, token_shape[1:])


def with_sampled_decisions(module: GraphModule) -> GraphModule:
    """Return a module that shares all parameters, whose decisions are sampled in training mode.

    `module` is that of a training form, or one made of it.
    """
    sampled = shared_copy(module)
    nodes = sampled.graph
    for number, node in enumerate(nodes.find_nodes(op="call_function", target=RANKED_DECISION)):
        score, previous, keep = node.args
        logits = argument(argument(score, 0), 0)
        sampled.add_submodule(f"decision_{number}", Decision(int(str(keep))))
        with nodes.inserting_before(node):
            node.replace_all_uses_with(nodes.call_module(f"decision_{number}", (logits, score, previous)))
        nodes.erase_node(node)
    nodes.lint()
    sampled.recompile()
    sampled.train(module.training)
    return sampled


def _require_only_predictors(predictors: tuple[Predictor, ...]) -> None:
    if not predictors:
        raise StageError("the model has no token predictors", "add `token-squeeze: {method: dtps}` before")
    own = {predictor.squeeze for predictor in predictors}
    for node in descendants(predictors[0].squeeze):
        if has_trait(node, Trait.SQUEEZE) and node not in own:
            message = f"tokens are squeezed at '{node.name}', after the first predictor and without one"
            raise StageError(message, "use one method for all squeezed blocks from the first predictor on")


def _require_several(predictor: Predictor, kept: int) -> int:
    """Return the number of kept tokens. Raises StageError for one: a dimension of one index cannot be lengthened."""
    if kept < KEPT_MIN:
        raise StageError(f"the predictor of '{predictor.block}' keeps one token", f"keep at least {KEPT_MIN}")
    return kept


def _mask(form: ModelGraph, predictor: Predictor, previous: Node | None, length: int) -> tuple[Node, Node]:
    """In place: hide the tokens that a predictor removes, so that `length` tokens are left.

    Returns the decision and the tokens after it. The predictor averages over tokens of the previous decision only.
    """
    squeeze, nodes = predictor.squeeze, form.module.graph
    resize_tokens(form, squeeze, length)
    if previous is not None:
        _replace_mean(form, predictor.mean, previous)
    with nodes.inserting_before(squeeze):
        decision = nodes.call_function(RANKED_DECISION, (predictor.score, previous, argument(squeeze, 2)))
        masked = nodes.call_function(MASKED[squeeze.target], (predictor.source, decision, previous))
    squeeze.replace_all_uses_with(masked)
    nodes.erase_node(squeeze)
    _changed(form)
    return decision, masked


def _hide_dropped(form: ModelGraph, stream: Node, decision: Node) -> None:
    """In place: hide dropped tokens from every attention and every average after `stream` that shows them."""
    after, shapes = set(descendants(stream)), form.axes.shapes
    patches = shapes[decision][1]
    for attention in find_attentions(form.module.graph, shapes):
        if attention.node in after and shapes[attention.k][2] >= patches:
            _replace_attention(form, attention, decision)
    for node in list(form.module.graph.nodes):
        if node in after and is_op(node, aten.mean.dim) and _averages_tokens(node, shapes, patches):
            _replace_mean(form, node, decision)
    form.module.graph.eliminate_dead_code()
    _changed(form)


def _averages_tokens(mean: Node, shapes: Mapping[Node, tuple[int, ...]], patches: int) -> bool:
    """Whether a mean is over tokens, all patch tokens among them."""
    shape = shapes[argument(mean, 0)]
    return len(shape) == 3 and [dim % 3 for dim in argument(mean, 1)] == [1] and shape[1] >= patches


def _replace_attention(form: ModelGraph, attention: Attention, decision: Node) -> None:
    if attention.biased or attention.windowed:
        message = f"the attention '{attention.node.name}' after a token predictor has a bias or windows"
        raise StageError(message, "use a method without predictors, such as etps")
    nodes, node = form.module.graph, attention.node
    operands = (attention.q, attention.k, attention.v, attention.scale, decision)
    with nodes.inserting_before(node):
        node.replace_all_uses_with(nodes.call_function(POLICY_ATTENTION, operands))


def _replace_mean(form: ModelGraph, mean: Node, decision: Node) -> None:
    nodes = form.module.graph
    with nodes.inserting_before(mean):
        masked = nodes.call_function(MASKED_MEAN, (argument(mean, 0), decision, argument(mean, 2, "keepdim", False)))
    mean.replace_all_uses_with(masked)
    nodes.erase_node(mean)


def _last_block(form: ModelGraph, length: int) -> tuple[str, Node]:
    """Return the name and the output of the last residual block that returns `length` tokens."""
    shapes = form.axes.shapes
    branches = [b for b in find_branches(form.module, shapes) if len(shapes[b.add]) == 3 and shapes[b.add][1] == length]
    return branches[-1].block, branches[-1].add


def _changed(form: ModelGraph) -> None:
    form.module.recompile()
    form.forget_axes()
