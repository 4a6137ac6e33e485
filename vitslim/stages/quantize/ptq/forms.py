"""Which layers of a model are quantized in another way than the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch.fx import GraphModule

from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.recipe.stages import Ptq

END_ROLES = ("patch_embed", "head")
"""Roles of the layers at both ends of a model."""


WIDE_BITS = 8
"""Of weights that `mean_bits` has room for."""


class WeightForm(NamedTuple):
    """How the weights of a layer are quantized."""

    bits: int
    block: int = 0
    """Weights that share a scale; 0: those of an output channel."""
    integer_scales: bool = False
    """Whether scales of blocks are whole multiples of one for the channel, as products of codes ask for."""


def weight_form(config: Ptq, end: bool, linear: bool, reduction: int, wide: bool = False) -> WeightForm:
    """The form of the weights of a layer.

    `end` says whether it is at an end of the model, `wide` whether it is among those that `mean_bits` has room for.
    Blocks need a linear layer, and a reduction that they divide.
    """
    if wide:
        return WeightForm(WIDE_BITS)
    if end and config.first_last_bits is not None:
        return WeightForm(config.first_last_bits)
    if not (config.group_size and linear and reduction % config.group_size == 0):
        return WeightForm(config.bits)
    return WeightForm(config.bits, config.group_size, config.activations != "float")


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

    Such an input stays in float where it cannot be read as pixels: 8 bits of the normalized image harm the outputs more
    than those of a whole block (DeiT-Tiny: alone 32 dB), for a few percent of the products.
    """
    return any(argument(node, 0).op == "placeholder" for node in layer_nodes(module)[weight])
