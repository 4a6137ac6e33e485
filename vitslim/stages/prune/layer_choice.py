"""The key `layers` of stages that mask weights: `gemm`, or names of layers."""

from __future__ import annotations

from typing import Literal

from vitslim.errors import Problem, closest
from vitslim.graph.sketch import ModelSketch, SketchLinear

LayerChoice = Literal["gemm"] | tuple[str, ...]
"""`gemm` is every layer but the head."""


def chosen_layers(choice: LayerChoice, sketch: ModelSketch) -> list[SketchLinear]:
    """Return the chosen layers in the order of the model, one for each weight. Unknown names choose none."""
    if choice == "gemm":
        chosen = {layer.weight: layer for layer in sketch.linears if layer.role != "head"}
    else:
        weights = {layer.weight for name in choice for layer in _named(name, sketch)}
        chosen = {layer.weight: layer for layer in sketch.linears if layer.weight in weights}
    return list(chosen.values())


def layer_problems(choice: LayerChoice, sketch: ModelSketch) -> list[Problem]:
    """Return a problem for an empty list, and for every name that no layer has."""
    if choice == "gemm":
        return []
    if not choice:
        return [Problem("layers", "the list is empty", "write `gemm` for all eligible layers")]
    return [_unknown(name, sketch) for name in choice if not _named(name, sketch)]


def _unknown(name: str, sketch: ModelSketch) -> Problem:
    stems = {_stem(layer.weight) for layer in sketch.linears}
    names = stems if "." in name else {stem.rpartition(".")[2] for stem in stems}
    return Problem("layers", f"no layer is called '{name}'", closest(name, names))


def _stem(weight: str) -> str:
    return weight.removesuffix(".weight")


def _named(name: str, sketch: ModelSketch) -> list[SketchLinear]:
    """Return layers whose weight ends with the dotted name: `qkv`, `mlp.fc1`, `blocks.0.attn.proj.weight`."""
    return [layer for layer in sketch.linears if f".{_stem(layer.weight)}".endswith(f".{_stem(name)}")]
