"""Quantization of the weight of each layer: bits, group size, and the form of its scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vitslim.stages.quantize.scheme import QuantScheme

MORE_BITS = 8
"""Bits of the weights that `average_bits` raises."""


class WeightForm(NamedTuple):
    """Quantization of the weight of a layer."""

    bits: int
    group_size: int = 0
    """Weights along the reduction that share a scale; 0: all weights of an output channel."""
    integer_scales: bool = False
    """Whether group scales are integer multiples of the channel scale, as integer GEMMs need them."""


def weight_form(
    scheme: QuantScheme, first_or_last: bool, linear: bool, reduction: int, more_bits: bool = False
) -> WeightForm:
    """Return the form of the weight of a layer.

    `more_bits`: whether it is one of those that `average_bits` raises to MORE_BITS. Groups need a linear layer and a
    reduction that they divide.
    """
    if more_bits:
        return WeightForm(MORE_BITS)
    if first_or_last and scheme.first_last_bits is not None:
        return WeightForm(scheme.first_last_bits)
    if not (scheme.group_size and linear and reduction % scheme.group_size == 0):
        return WeightForm(scheme.bits)
    return WeightForm(scheme.bits, scheme.group_size, scheme.integer_matmuls)


def eight_bit_weights(
    noise: Mapping[str, float], sizes: Mapping[str, int], bits: Mapping[str, int], average_bits: float
) -> frozenset[str]:
    """Return the weights that get MORE_BITS: those of the most noise for each added bit, as far as the average allows.

    noise: noise that fewer bits add to the outputs, of the weights that may get more. sizes, bits: number of elements
    and bits without raising, of all weights. A weight that does not fit is passed over for the next one.
    """
    room = average_bits * sum(sizes.values()) - sum(bits[weight] * size for weight, size in sizes.items())
    costs = {weight: (MORE_BITS - bits[weight]) * sizes[weight] for weight in noise if bits[weight] < MORE_BITS}
    found = set()
    for weight in sorted(costs, key=lambda weight: -noise[weight] / costs[weight]):
        if costs[weight] <= room:
            found.add(weight)
            room -= costs[weight]
    return frozenset(found)
