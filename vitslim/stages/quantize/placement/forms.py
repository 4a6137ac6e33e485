"""The forms of activations and attention that a placement chooses among."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from vitslim.graph.edits import FakeQuantSite, QuantizeAttention
from vitslim.graph.edits.divide_tokens import divided_layers
from vitslim.graph.edits.fake_quant import has_activation_scale, insert_fake_quant, remove_fake_quant
from vitslim.graph.edits.quantize_attention import quantize_attention
from vitslim.graph.edits.read_pixels import pixel_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensors_of
from vitslim.stages.quantize.observe import solvable_layers
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.units import FLOAT_BITS


@dataclass(frozen=True)
class Form:
    """One form of the activations and the attention of a quantized model."""

    activations: str
    """`static` or `dynamic`."""
    attention: bool
    """Whether both attention matmuls are quantized."""
    sites: Mapping[str, FakeQuantSite]
    """Quantization of each layer, by weight."""
    float_graph: ModelGraph
    """The graph without quantizers of layers; its weights are rounded."""
    scales: Mapping[str, Tensor]
    scheme: QuantScheme

    def name(self, in_float: Collection[str]) -> str:
        """Return, for example, `static with attention, 3 in float`."""
        name = self.activations + (" with attention" if self.attention else "")
        return f"{name}, {len(in_float)} in float" if in_float else name

    def candidate(self, in_float: Collection[str]) -> tuple[ModelGraph, QuantScheme]:
        """Return a graph of this form with float activations in these layers, and its scheme."""
        sites = tuple(with_float_activation(s) if w in in_float else s for w, s in self.sites.items())
        graph = insert_fake_quant(self.float_graph, sites, self.scales, self.scheme.limits_sums)
        return graph, replace(self.scheme, sites=sites, attention=self.attention)


def candidate_forms(graph: ModelGraph, scheme: QuantScheme) -> list[Form]:
    """Return the forms of a quantized graph: its own activations, dynamic ones, and attention in float or quantized.

    ONNX Runtime computes convolutions other than patch embeddings in float, so their activations are not quantized.
    """
    plain = remove_fake_quant(graph)
    matmuls = set(solvable_layers(plain.module))
    own = {s.weight: s if s.weight in matmuls else with_float_activation(s) for s in scheme.sites}
    activations = {scheme.activations: own}
    if scheme.activations == "static":
        static = pixel_layers(graph) | divided_layers(graph)  # their range does not depend on the image
        activations["dynamic"] = {w: s if w in static else _dynamic(s) for w, s in own.items()}
    scales, graphs = tensors_of(graph.module), {False: plain}
    for edit in (edit for edit in graph.edits if isinstance(edit, QuantizeAttention)):
        graphs[True] = quantize_attention(plain, edit.sites, scales)
    return [
        Form(name, attention, sites, float_graph, scales, scheme)
        for name, sites in activations.items()
        for attention, float_graph in graphs.items()
    ]


def with_float_activation(site: FakeQuantSite) -> FakeQuantSite:
    """Return the site with a float activation."""
    return replace(site, activation_bits=FLOAT_BITS, zero_point=None, dynamic=False)


def _dynamic(site: FakeQuantSite) -> FakeQuantSite:
    return replace(site, activation_bits=8, zero_point=None, dynamic=True) if has_activation_scale(site) else site
