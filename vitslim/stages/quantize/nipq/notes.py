"""Notes and metrics of the report on learned bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import layer_of
from vitslim.graph.edits.quantize_attention import attention_sites
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages import Nipq
from vitslim.results import LayerNote, TensorBits
from vitslim.stages.quantize.nipq.costs import Cost
from vitslim.stages.quantize.nipq.tensors import Tensors
from vitslim.stages.quantize.notes import NO_INTEGER_KERNEL, describe, describe_attention
from vitslim.units import INTEGER_BITS_MAX


def bits_notes(graph: ModelGraph, sites: Sequence[FakeQuantSite], table: Sequence[TensorBits]) -> tuple[LayerNote, ...]:
    """Return a note on each quantized layer and attention of a graph, with the learned bits as the reason."""
    layers = tuple(
        LayerNote(layer=site.weight, result=describe(site), reason=_reason(table, layer_of(site.weight)))
        for site in sites
    )
    attention = []
    for block, site in attention_sites(graph).items():
        kernel = f", {NO_INTEGER_KERNEL}" if min(site.bits) < INTEGER_BITS_MAX else ""
        result, layer = describe_attention(site) + kernel, f"{block}.attention"
        attention.append(LayerNote(layer=layer, result=result, reason=_reason(table, layer)))
    return (*layers, *attention)


def totals(
    config: Nipq, tensors: Tensors, learned: Tensor, widths: Mapping[str, int], costs: Sequence[Cost]
) -> dict[str, float]:
    """Return the average bits of weights and of activations, learned and rounded, and the cost that is limited.

    learned: float (n,). Learned bits far from the rounded ones show that the training was too short for the target.
    """
    found = {}
    bits = dict(zip(tensors, learned.tolist(), strict=True))
    for word, kind in (("weight", True), ("activation", False)):
        members = {name: one.elements for name, one in tensors.items() if one.is_weight == kind}
        elements = max(sum(members.values()), 1)
        found[f"average_{word}_bits"] = sum(widths[name] * count for name, count in members.items()) / elements
        found[f"learned_{word}_bits"] = sum(bits[name] * count for name, count in members.items()) / elements
    if config.target is not None and (key := config.target.limit[0]) != "average_bits":
        found[key] = costs[0].deployed(torch.tensor(list(widths.values())))
    return found


def _reason(table: Sequence[TensorBits], layer: str) -> str:
    """Return, for example, `learned 3.2-bit weight and 4.9-bit activation`."""
    found = [one for one in table if one.layer == layer or one.layer.startswith(f"{layer}.")]
    words = [f"{one.learned:.1f}-bit {one.layer.removeprefix(layer).removeprefix('.') or one.operand}" for one in found]
    return f"learned {', '.join(words)}" if words else ""
