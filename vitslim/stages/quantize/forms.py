"""Which layers of a model are quantised in another way than the rest."""

from __future__ import annotations

from torch.fx import GraphModule

from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.insert_fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.recipe.stages import Quantised

END_ROLES = ("patch_embed", "head")
"""Roles of the layers at both ends of a model."""


def weight_form(config: Quantised, end: bool, linear: bool, reduction: int) -> tuple[int, int]:
    """Bits of the weights of a layer, and how many of them share a scale; 0: those of an output channel.

    `end` says whether it is at an end of the model. Blocks need a linear layer, and a reduction that they divide.
    """
    if end and config.end_bits is not None:
        return config.end_bits, 0
    return config.bits, config.block if config.block and linear and reduction % config.block == 0 else 0


def end_layers(graph: ModelGraph) -> frozenset[str]:
    """Weights of the layers that `end_bits` is about."""
    return frozenset(layer.weight for layer in find_anatomy(graph).linears if layer.role in END_ROLES)


def reads_image(module: GraphModule, weight: str) -> bool:
    """Whether a layer reads the image itself.

    Such an input stays in float where it cannot be read as pixels: 8 bits of the normalised image harm the outputs more
    than those of a whole block (DeiT-Tiny: alone 32 dB), for a few percent of the products.
    """
    return any(argument(node, 0).op == "placeholder" for node in layer_nodes(module)[weight])
