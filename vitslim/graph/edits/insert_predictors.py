"""Token predictors: small networks that score the tokens at the input of some blocks (dTPS and DynamicViT).

A predictor consists of ordinary operators, so axis inference, pruning, quantization and export need nothing for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from vitslim.errors import StageError
from vitslim.graph.anatomy import ancestors, block_input, find_anatomy
from vitslim.graph.axes.names import PREDICTOR_PREFIX
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.edits.edit import Edit
from vitslim.graph.edits.insert_squeeze import squeezable_blocks
from vitslim.graph.edits.shorten_tokens import require_tokens, shorten_tokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, graph_module, is_op, parameter_of, tensors_of
from vitslim.graph.ops.squeeze import KEEP_TOKENS, SQUEEZE_TOKENS

aten = torch.ops.aten

OPERATORS: Mapping[str, Any] = MappingProxyType({"dtps": SQUEEZE_TOKENS, "dynamicvit": KEEP_TOKENS})
"""Method to the operator that takes tokens, their scores and the number of kept ones."""

NORM_EPSILON = 1e-6
MIN_WIDTH = 4
"""Fewest channels of a token: the last hidden layer has a quarter of them."""
TO_THE_END = 2**63 - 1
"""End of a slice without an upper bound, as torch.export writes it."""


@dataclass(frozen=True)
class InsertPredictors(Edit):
    """Tokens are scored by predictors and removed at the input of these blocks."""

    method: str
    """`dtps`: removed tokens are added to the most similar kept ones; `dynamicvit`: they are dropped."""
    keep: dict[str, int]
    """Block name (`blocks.3`) to the number of patch tokens kept there, without prefix tokens."""

    def replay(self, graph: ModelGraph) -> ModelGraph:
        """Insert the predictors again."""
        return insert_predictors(graph, self.keep, self.method)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> InsertPredictors:
        """Rebuild the edit."""
        return cls(str(fields["method"]), dict(fields["keep"]))


@dataclass(frozen=True)
class Predictor:
    """One predictor of a graph; all nodes belong to its module."""

    block: str
    source: Node
    """Tokens at the input of the block: (batch, prefix + patches, channels)."""
    mean: Node
    """Average over the patch tokens: (batch, 1, channels)."""
    logits: Node
    """(batch, patches, 2), channel 0 for keeping a token."""
    score: Node
    """Probability of keeping each patch token: (batch, patches)."""
    squeeze: Node
    """The operator that removes tokens: (batch, prefix + kept, channels)."""


def insert_predictors(graph: ModelGraph, keep: Mapping[str, int], method: str) -> ModelGraph:
    """Return a new graph in which predictors choose the patch tokens that stay at the input of some blocks.

    keep: block name to the number of kept patch tokens, without prefix tokens. A block that keeps all its tokens gets
    no predictor. method: a key of OPERATORS. New parameters, `vitslim.predictor.BLOCK.*`, have initial values that
    depend on the block alone. Raises StageError for a model whose tokens cannot be squeezed, for an unknown block, for
    one that is squeezed already, and for a number of tokens that the block does not have.
    """
    new = graph.copy()
    names = squeezable_blocks(new, keep)
    done = {name: keep[name] for name in names if _insert(new, name, keep[name], method)}
    if done:
        new.edits = (*new.edits, InsertPredictors(method, done))
    return new


def _insert(graph: ModelGraph, name: str, keep: int, method: str) -> bool:
    """Insert into one block, in place; False if it keeps all its tokens."""
    anatomy = find_anatomy(graph)
    block = anatomy.block(name)
    if block is None:
        raise StageError(f"token-squeeze: the model has no block '{name}'")
    patches = require_tokens(anatomy, block, keep)
    if keep == patches:
        return False
    source = block_input(block)
    width = anatomy.shapes[source][2]
    if width < MIN_WIDTH:
        raise StageError(f"token-squeeze: a predictor needs at least {MIN_WIDTH} channels, '{name}' has {width}")

    def build(nodes: Graph, tokens: Node) -> Node:
        _add_parameters(graph.module, name, width)
        patch_tokens = _narrow(nodes, tokens, 1, anatomy.prefix_tokens) if anatomy.prefix_tokens else tokens
        score = _score(nodes, patch_tokens, name, patches, width)
        return nodes.call_function(OPERATORS[method], (tokens, score, keep))

    shorten_tokens(graph, source, anatomy.prefix_tokens + keep, build)
    return True


def layer_widths(width: int) -> dict[str, tuple[int, int]]:
    """Return the input and output features of each linear layer of a predictor, for tokens of `width` channels."""
    half, quarter = width // 2, width // 4
    return {"fc1": (width, width), "fc2": (width, half), "fc3": (half, quarter), "fc4": (quarter, 2)}


def _add_parameters(module: GraphModule, block: str, width: int) -> None:
    """Add the parameters of a predictor: a norm without effect, random weights scaled by their fan-in, zero biases."""
    generator = torch.Generator().manual_seed(crc32(block.encode()))
    _add(module, f"{block}.norm", torch.ones(width))
    for name, (fan_in, fan_out) in layer_widths(width).items():
        _add(module, f"{block}.{name}", torch.randn(fan_out, fan_in, generator=generator) * fan_in**-0.5)


def _add(module: GraphModule, layer: str, weight: Tensor) -> None:
    holder = nn.Module()
    holder.register_parameter("weight", nn.Parameter(weight))
    holder.register_parameter("bias", nn.Parameter(torch.zeros(len(weight))))
    module.add_submodule(PREDICTOR_PREFIX + layer, holder)


def _score(nodes: Graph, tokens: Node, block: str, patches: int, width: int) -> Node:
    """Insert the probability of keeping each patch token, from its own features and an average over all of them.

    tokens: (batch, patches, width). Source: DynamicViT (Rao et al., NeurIPS 2021), section 3.2; TPS uses the same.
    """

    def call(operator: Any, *args: Any) -> Node:
        return nodes.call_function(operator, args)

    def layer(x: Node, name: str) -> Node:
        weight, bias = (nodes.get_attr(f"{PREDICTOR_PREFIX}{block}.{name}.{leaf}") for leaf in ("weight", "bias"))
        if name == "norm":
            return call(aten.layer_norm.default, x, [width], weight, bias, NORM_EPSILON, False)
        return call(aten.linear.default, x, weight, bias)

    hidden = call(aten.gelu.default, layer(layer(tokens, "norm"), "fc1"))
    local, rest = _narrow(nodes, hidden, 2, 0, width // 2), _narrow(nodes, hidden, 2, width // 2)
    average = call(aten.expand.default, call(aten.mean.dim, rest, [1], True), [-1, patches, -1])
    hidden = call(aten.cat.default, [local, average], 2)
    for name in ("fc2", "fc3"):
        hidden = call(aten.gelu.default, layer(hidden, name))
    return call(aten.select.int, call(aten.softmax.int, layer(hidden, "fc4"), -1), 2, 0)


def _narrow(nodes: Graph, x: Node, dim: int, start: int, end: int = TO_THE_END) -> Node:
    return nodes.call_function(aten.slice.Tensor, (x, dim, start, end))


def find_predictors(module: GraphModule) -> tuple[Predictor, ...]:
    """Return the predictors of a graph, in graph order."""
    squeezes = (node for node in module.graph.nodes if has_trait(node, Trait.SQUEEZE))
    return tuple(predictor for node in squeezes if (predictor := _predictor(node)) is not None)


def _predictor(squeeze: Node) -> Predictor | None:
    """Return the predictor that scores the tokens of a squeeze; None if they have another score."""
    score, softmax = argument(squeeze, 1), argument(argument(squeeze, 1), 0)
    if not has_trait(softmax, Trait.SOFTMAX):
        return None
    logits: Node = argument(softmax, 0)
    block = parameter_of(argument(logits, 1)).removeprefix(PREDICTOR_PREFIX).removesuffix(".fc4.weight")
    mean = next(node for node in ancestors(logits) if is_op(node, aten.mean.dim))
    return Predictor(block, argument(squeeze, 0), mean, logits, score, squeeze)


def predictor_module(module: GraphModule, predictor: Predictor) -> GraphModule:
    """Return a module from the tokens of a predictor, (batch, prefix + patches, channels), to its logits.

    It shares the parameters of `module`, under the same names.
    """
    inner, copies = Graph(), {}
    inside = set(ancestors(predictor.logits)) - {predictor.source, *ancestors(predictor.source)}
    copies[predictor.source] = inner.placeholder("tokens")
    for node in module.graph.nodes:
        if node in inside or node is predictor.logits:
            copies[node] = inner.node_copy(node, copies.__getitem__)
    inner.output(copies[predictor.logits])
    used = {str(node.target) for node in inner.nodes if node.op == "get_attr"}
    return graph_module({name: tensor for name, tensor in tensors_of(module).items() if name in used}, inner)
