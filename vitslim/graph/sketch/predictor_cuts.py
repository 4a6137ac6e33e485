"""Matmuls and parameters of token predictors, for estimates."""

from __future__ import annotations

from collections.abc import Mapping

from vitslim.graph.axes.names import PREDICTOR_PREFIX
from vitslim.graph.edits.insert_predictors import OPERATORS, layer_widths
from vitslim.graph.sketch.matmul import Matmul
from vitslim.graph.sketch.model_sketch import ModelSketch
from vitslim.graph.sketch.size import ONE, Size
from vitslim.graph.sketch.token_matmuls import BY_OPERATOR, SqueezeMatmuls, SqueezeSizes, TokenCut

ROLE = "predictor"


def predictor_cuts(sketch: ModelSketch, keep: Mapping[str, int], method: str) -> dict[str, TokenCut]:
    """Return the cuts of a method with predictors: block name to the number of kept patch tokens."""
    cuts = {}
    for block, count in keep.items():
        width = next(p.columns for p in sketch.matmuls if p.block == block and p.role == "proj")
        layers = _layers(width, width.value(sketch.axes))
        matmuls = (_matmuls(layers), BY_OPERATOR[OPERATORS[method]])
        cuts[block] = TokenCut(count, matmuls, at_input=True, parameters=_parameters(block, width, layers))
    return cuts


def _layers(width: Size, channels: int) -> dict[str, tuple[Size, Size]]:
    """Return the input and output features of each linear layer; the first one reads the tokens of the model."""
    fixed = {name: (Size.of(fan_in), Size.of(fan_out)) for name, (fan_in, fan_out) in layer_widths(channels).items()}
    return {**fixed, "fc1": (width, fixed["fc1"][1])}


def _matmuls(layers: Mapping[str, tuple[Size, Size]]) -> SqueezeMatmuls:
    def matmuls(sizes: SqueezeSizes) -> tuple[Matmul, ...]:
        """The linear layers, which read the patch tokens."""
        patches = sizes.kept + sizes.removed
        names = {layer: f"{PREDICTOR_PREFIX}{sizes.block}.{layer}.weight" for layer in layers}
        return tuple(
            Matmul(names[layer], ONE, patches, fan_in, fan_out, names[layer], sizes.block, ROLE)
            for layer, (fan_in, fan_out) in layers.items()
        )

    return matmuls


def _parameters(block: str, width: Size, layers: Mapping[str, tuple[Size, Size]]) -> dict[str, Size]:
    prefix = f"{PREDICTOR_PREFIX}{block}."
    found = {f"{prefix}norm.weight": width, f"{prefix}norm.bias": width}
    for layer, (fan_in, fan_out) in layers.items():
        found |= {f"{prefix}{layer}.weight": fan_in * fan_out, f"{prefix}{layer}.bias": fan_out}
    return found
