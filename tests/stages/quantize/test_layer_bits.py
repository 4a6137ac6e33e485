"""Bits of single layers in `qat`: the baseline with the bits that another method has learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vitslim.graph.edits.quantize_attention import attention_sites
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.recipe.stages import OwnBits, Qat
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.annotate import quantizer_sites
from vitslim.stages.quantize.qat.stage import QatStage

BITS: dict[str, Any] = {
    "blocks.0.attn.qkv": OwnBits(weight=3, activation=6),
    "head": OwnBits(weight=8),
    "blocks.1.attention.key": OwnBits(activation=5),
}
KEYS: dict[str, Any] = {"method": "qat", "bits": 4, "activation_bits": 4, "attention": True, "smooth": False}


def test_layers_with_own_bits_get_them(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> None:
    context = replace(digits_context(tiny_graph, calibration=16), result=lambda _: StageResult(tiny_graph))
    stage = QatStage(Qat(**KEYS, layer_bits=BITS, train=Train(epochs=1, batch=16, images=16), rounding="nearest"))
    assert stage.requires(sketch(tiny_graph)) == []
    result = stage.apply(tiny_graph, context)
    sites = quantizer_sites(result.graph)
    assert (sites["blocks.0.attn.qkv.weight"].weight_bits, sites["blocks.0.attn.qkv.weight"].activation_bits) == (3, 6)
    assert (sites["head.weight"].weight_bits, sites["head.weight"].activation_bits) == (8, 4)
    assert (sites["blocks.1.attn.qkv.weight"].weight_bits, sites["blocks.1.attn.qkv.weight"].activation_bits) == (4, 4)
    attention = attention_sites(result.graph)
    assert (attention["blocks.0"].bits, attention["blocks.1"].bits) == ((4, 4, 4, 4), (4, 5, 4, 4))
    assert sketch(result.graph).cost() == stage.estimate(sketch(tiny_graph)).cost()


def test_names_without_a_layer_are_refused(tiny_graph: ModelGraph) -> None:
    wrong = {"blocks.0.attn.qkw": OwnBits(weight=3), "blocks.0.attention.key": OwnBits(activation=3)}
    stage = QatStage(Qat(**KEYS | {"attention": False}, layer_bits=wrong))
    problems = stage.requires(sketch(tiny_graph))
    assert [problem.where for problem in problems] == ["layer_bits", "layer_bits"]
    assert "did you mean 'blocks.0.attn.qkv'?" in problems[0].hint
