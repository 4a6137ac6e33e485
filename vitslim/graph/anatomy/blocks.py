"""Blocks, attention, MLP, layers with a weight and class token of a transformer, found in its graph.

Independent of model families. Attention is a scaled dot product (one node, or a softmax between two matmuls), a block
is the numbered module that holds it, and the role of a layer follows from the nodes that use its result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Node

from vitslim.errors import StageError
from vitslim.graph.anatomy.attention import Attention, find_attentions
from vitslim.graph.anatomy.flow import ancestors, descendants, image_dependent_nodes
from vitslim.graph.axes.names import PREDICTOR_PREFIX
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, parameter_of, tensors_of

aten = torch.ops.aten

BLOCK_NAME = re.compile(r"^(.*\.\d+)\.[^.]+\..*$")
"""The longest prefix that ends in a number and is followed by a module and a parameter."""


@dataclass(frozen=True)
class Linear:
    """One layer with a weight: a linear or a convolution."""

    weight: str
    node: Node
    in_features: int
    """Length of the reduction: for a convolution, input channels of a group times kernel size."""
    out_features: int
    role: str
    """qkv, proj, fc1, fc2, head, patch_embed, predictor or other."""
    block: str


@dataclass(frozen=True)
class Block:
    """One transformer block."""

    name: str
    """`blocks.3`; in Swin `layers.1.blocks.0`."""
    attention: Attention | None
    attention_residual: Node | None
    """The addition of the attention branch to its input; None without one."""
    squeeze: Node | None
    """The operator that reduces the tokens after the attention residual, or at the input of the block; None without."""
    mlp: tuple[str, ...]
    """Names of the weights with role fc1 or fc2."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of one graph; all nodes belong to its module."""

    blocks: tuple[Block, ...]
    linears: tuple[Linear, ...]
    token_node: Node | None
    """The concatenation of prefix tokens (class token, registers) and patch tokens; None without one."""
    has_class_token: bool
    prefix_tokens: int
    shapes: dict[Node, tuple[int, ...]]
    """Shape of each node with one result tensor; the batch size is `vitslim.graph.axes.tensor_shapes.BATCH`."""

    def block(self, name: str) -> Block | None:
        """Return the block with this name; None without one."""
        return next((block for block in self.blocks if block.name == name), None)


def find_anatomy(graph: ModelGraph) -> Anatomy:
    """Return the parts of a graph. Never fails: missing parts are absent from the result."""
    shapes = graph.axes.shapes
    attentions = find_attentions(graph.module.graph, shapes)
    layers = [n for n in graph.module.graph.nodes if has_trait(n, Trait.LAYER) and parameter_of(argument(n, 1))]
    roles = _roles(layers, attentions)
    names = _block_names(layers, roles, attentions)
    tensors = tensors_of(graph.module)
    linears = tuple(_linear(node, roles.get(node, ""), names, tensors) for node in layers)
    linears = _with_mlp_roles(linears)
    blocks = _with_squeezes([_block(name, attentions, linears) for name in names])
    token_node, has_class_token, prefix = _prefix(graph, shapes)
    return Anatomy(blocks, linears, token_node, has_class_token, prefix, shapes)


def block_input(block: Block) -> Node:
    """Return the tokens that enter a block: the operand of its attention residual that the attention reads.

    Raises StageError for a block without attention or without the residual connection.
    """
    if block.attention is None or block.attention_residual is None:
        raise StageError(f"token-squeeze: '{block.name}' has no attention with a residual", "name another block")
    before = set(ancestors(block.attention.node))
    return next(side for side in block.attention_residual.all_input_nodes if side in before)


def _roles(layers: list[Node], attentions: list[Attention]) -> dict[Node, str]:
    """Roles that follow from the data flow alone; the roles of MLP layers and heads also need the blocks."""
    roles: dict[Node, str] = {}
    for attention in attentions:
        for operand in (attention.q, attention.k, attention.v):
            near = (operand, *ancestors(operand, (Trait.LAYER,))) if not has_trait(operand, Trait.LAYER) else (operand,)
            roles |= {node: "qkv" for node in near if node in layers}
        projection = next((node for node in descendants(attention.node, (Trait.LAYER,)) if node in layers), None)
        if projection is not None:
            roles[projection] = "proj"
    for node in layers:
        if not is_op(node, aten.linear.default) and not any(has_trait(n, Trait.LAYER) for n in ancestors(node)):
            roles.setdefault(node, "patch_embed")
    return roles


def _block_names(layers: list[Node], roles: dict[Node, str], attentions: list[Attention]) -> tuple[str, ...]:
    """Names of blocks in graph order: modules that hold an attention, and their siblings; modules that hold layers in a
    model without attention.

    A sibling is a module with another number in the same list, so a block whose attention was removed is still found.
    """
    holders = [n for n in layers if roles.get(n) in {"qkv", "proj"}] if attentions else layers
    lists = {name.rpartition(".")[0] for n in holders if (name := _numbered(n))}
    return tuple(dict.fromkeys(name for n in layers if (name := _numbered(n)) and name.rpartition(".")[0] in lists))


def _numbered(layer: Node) -> str:
    match = BLOCK_NAME.match(parameter_of(argument(layer, 1)))
    return match.group(1) if match else ""


def _block_of(parameter: str, names: tuple[str, ...]) -> str:
    return next((name for name in names if parameter.startswith(name + ".")), "")


def _linear(node: Node, role: str, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> Linear:
    weight = parameter_of(argument(node, 1))
    shape = tensors[weight].shape
    block = _block_of(weight.removeprefix(PREDICTOR_PREFIX), names)
    if weight.startswith(PREDICTOR_PREFIX):
        role = "predictor"
    if not role and not block and not any(has_trait(n, Trait.LAYER) for n in descendants(node)):
        role = "head"
    return Linear(weight, node, shape[1:].numel(), shape[0], role, block)


def _with_mlp_roles(linears: tuple[Linear, ...]) -> tuple[Linear, ...]:
    """Assign fc1 and fc2: fc1 feeds another linear layer of its block without a norm or addition between them."""
    free = (x for x in linears if not x.role and x.block and is_op(x.node, aten.linear.default))
    open_layers = {layer.node: layer for layer in free}
    roles: dict[Node, str] = {}
    for node, layer in open_layers.items():
        stops = (Trait.LAYER, Trait.ADDITION, Trait.ROW_NORM)
        for other in descendants(node, stops):
            if other in open_layers and open_layers[other].block == layer.block:
                roles[node] = "fc1"
                roles.setdefault(other, "fc2")
    return tuple(
        Linear(x.weight, x.node, x.in_features, x.out_features, x.role or roles.get(x.node, "other"), x.block)
        for x in linears
    )


def _block(name: str, attentions: list[Attention], linears: tuple[Linear, ...]) -> Block:
    own = [layer for layer in linears if layer.block == name]
    inside = {layer.node for layer in own if layer.role == "qkv"}
    attention = next(
        (a for a in attentions if any(n in inside for n in (a.q, *ancestors(a.q, (Trait.LAYER,))))),
        None,
    )
    residual = _residual(attention) if attention else None
    mlp = tuple(layer.weight for layer in own if layer.role in {"fc1", "fc2"})
    return Block(name, attention, residual, None, mlp)


def _with_squeezes(blocks: list[Block]) -> tuple[Block, ...]:
    """Return the blocks with their token squeezes. In a block without MLP, the next block reads the squeeze."""
    found: list[Block] = []
    for block in blocks:
        near = (*block.attention_residual.users, *block.attention_residual.all_input_nodes) if (
            block.attention_residual is not None) else ()  # fmt: skip
        earlier = {other.squeeze for other in found}
        squeeze = next((node for node in near if has_trait(node, Trait.SQUEEZE) and node not in earlier), None)
        found.append(replace(block, squeeze=squeeze))
    return tuple(found)


def _residual(attention: Attention) -> Node | None:
    """Return the first addition of a result of the attention to one of the inputs of the attention."""
    inputs = set(ancestors(attention.node))
    branch = {attention.node, *descendants(attention.node)}
    for node in descendants(attention.node):
        if has_trait(node, Trait.ADDITION):
            sides = node.all_input_nodes
            if len(sides) == 2 and any(s in inputs for s in sides) and any(s in branch for s in sides):
                other = next(s for s in sides if s not in branch)
                if other in inputs and other.op != "get_attr":
                    return node
    return None


def _prefix(graph: ModelGraph, shapes: dict[Node, tuple[int, ...]]) -> tuple[Node | None, bool, int]:
    """Return the first concatenation along dimension 1 of constant tokens and tokens that depend on the image, whether
    there is a class token among them, and the number of constant tokens."""
    from_image = image_dependent_nodes(graph.module)
    computed = {node for node in from_image if not _only_sizes(node)}
    for node in graph.module.graph.nodes:
        if not is_op(node, aten.cat.default) or argument(node, 1, "dim", 0) not in (1, -2):
            continue
        parts: list[Node] = argument(node, 0)
        constant = [part for part in parts if not _depends(part, computed)]
        if node in computed and constant and constant == parts[: len(constant)] and len(constant) < len(parts):
            names = [str(n.target) for n in (constant[0], *ancestors(constant[0])) if n.op == "get_attr"]
            has_class_token = any("cls" in name or "class" in name for name in names)
            return node, has_class_token, sum(shapes[part][1] for part in constant)
    return None, False, 0


def _only_sizes(node: Node) -> bool:
    return is_op(node, aten.sym_size.int)


def _depends(node: Node, computed: set[Node]) -> bool:
    """Whether a node depends on pixel values of the image, not only on its batch size."""
    if is_op(node, aten.expand.default):
        return argument(node, 0) in computed
    return node in computed
