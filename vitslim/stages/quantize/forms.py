"""Which layers of a model are quantised in another way than the rest."""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import GraphModule

from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.insert_fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.recipe.stages import Quantised

END_ROLES = ("patch_embed", "head")
"""Roles of the layers at both ends of a model."""


WIDE_BITS = 8
"""Of weights that `mean_bits` has room for."""


def weight_form(config: Quantised, end: bool, linear: bool, reduction: int, wide: bool = False) -> tuple[int, int]:
    """Bits of the weights of a layer, and how many of them share a scale; 0: those of an output channel.

    `end` says whether it is at an end of the model, `wide` whether it is among those that `mean_bits` has room for.
    Blocks need a linear layer, and a reduction that they divide.
    """
    if wide:
        return WIDE_BITS, 0
    if end and config.end_bits is not None:
        return config.end_bits, 0
    return config.bits, config.block if config.block and linear and reduction % config.block == 0 else 0


def widened(
    shares: Mapping[str, float], sizes: Mapping[str, int], bits: Mapping[str, int], mean_bits: float
) -> frozenset[str]:
    """The weights that get WIDE_BITS bits: those of the largest share for each bit more, as far as the mean allows.

    shares: of the weights that may get them, what they lose in fewer bits. sizes, bits: of all weights, their numbers
    and the bits that they have without. A weight that has no more room is passed over for the next.
    """
    room = mean_bits * sum(sizes.values()) - sum(bits[weight] * size for weight, size in sizes.items())
    costs = {weight: (WIDE_BITS - bits[weight]) * sizes[weight] for weight in shares if bits[weight] < WIDE_BITS}
    found = set()
    for weight in sorted(costs, key=lambda weight: -shares[weight] / costs[weight]):
        if costs[weight] <= room:
            found.add(weight)
            room -= costs[weight]
    return frozenset(found)


def end_layers(graph: ModelGraph) -> frozenset[str]:
    """Weights of the layers that `end_bits` is about."""
    return frozenset(layer.weight for layer in find_anatomy(graph).linears if layer.role in END_ROLES)


def reads_image(module: GraphModule, weight: str) -> bool:
    """Whether a layer reads the image itself.

    Such an input stays in float where it cannot be read as pixels: 8 bits of the normalised image harm the outputs more
    than those of a whole block (DeiT-Tiny: alone 32 dB), for a few percent of the products.
    """
    return any(argument(node, 0).op == "placeholder" for node in layer_nodes(module)[weight])
