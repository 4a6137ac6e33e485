"""The arms of `scripts/bench nipq`: quantization-aware training with given and with learned bits, in equal steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vitslim.data import DataModule
from vitslim.graph.edits.fake_quant import layer_of
from vitslim.graph.edits.quantize_attention import OPERANDS, attention_sites
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages import BitTarget, Nipq, OwnBits, Qat, StageConfig
from vitslim.recipe.stages.training import Loss
from vitslim.recipe.train import Train
from vitslim.stages.export.annotate import quantizer_sites
from vitslim.units import FLOAT_BITS

LEARNED = "NIPQ 4"
"""The arm whose bits another arm reuses."""


@dataclass(frozen=True)
class Task:
    """A model with its images and its training, the same for all arms."""

    name: str
    dense: ModelGraph
    data: DataModule
    loss: Loss
    train: Train
    bit_loss: float = 1.0
    seed: int = 0


Arm = Callable[[Task, Mapping[str, ModelGraph]], StageConfig]
"""Makes the config of an arm from the task and the models of earlier arms."""


def lsq(bits: int, **keys: Any) -> Arm:
    """Return LSQ at one number of bits, from the same initial ranges as NIPQ and without other preparations."""

    def make(task: Task, _: Mapping[str, ModelGraph]) -> StageConfig:
        plain: dict[str, Any] = {"smooth": False, "rounding": "nearest", "reduce_range": False, "attention": True}
        values = {"bits": bits, "activation_bits": bits, **plain, **keys}
        return Qat(method="qat", teacher="dense", loss=task.loss, train=task.train, **values)

    return make


def lsq_with_learned_bits(task: Task, models: Mapping[str, ModelGraph]) -> StageConfig:
    """Return LSQ with the bits that NIPQ has learned."""
    return lsq(4, layer_bits=bits_of(models[LEARNED]))(task, models)


def nipq(average: float | None = None, **keys: Any) -> Arm:
    """Return NIPQ with learned bits of an average, or with the bits that `keys` fix."""

    def make(task: Task, _: Mapping[str, ModelGraph]) -> StageConfig:
        target = BitTarget(average_bits=average) if average else None
        values = {"target": target, "granularity": "per-channel", "bit_loss": task.bit_loss, **keys}
        return Nipq(method="nipq", teacher="dense", loss=task.loss, train=task.train, **values)

    return make


def bits_of(graph: ModelGraph) -> dict[str, OwnBits]:
    """Return the bits of every layer and operand of a quantized graph, as `layer_bits` of `qat`."""
    found = {
        layer_of(weight): OwnBits(
            weight=site.weight_bits, activation=site.activation_bits if site.activation_bits < FLOAT_BITS else None
        )
        for weight, site in quantizer_sites(graph).items()
    }
    for block, site in attention_sites(graph).items():
        found |= {f"{block}.attention.{name}": OwnBits(activation=site.bits_of(name)) for name in OPERANDS}
    return found


COMPARED: dict[str, Arm] = {
    "LSQ 4": lsq(4),
    LEARNED: nipq(4),
    "LSQ with the bits of NIPQ 4": lsq_with_learned_bits,
    "NIPQ fixed 4": nipq(bits=4, activation_bits=4),
}
LOWER: dict[str, Arm] = {
    "qat 4, all defaults": lsq(4, smooth=True, rounding="gptq"),
    "NIPQ 4, per tensor": nipq(4, granularity="per-tensor"),
    "NIPQ 4, 3 quantized epochs": nipq(4, quantized_epochs=3),
    "LSQ 3": lsq(3),
    "NIPQ 3": nipq(3),
    "LSQ 2": lsq(2),
    "NIPQ 2.5": nipq(2.5),
}
ABLATIONS: dict[str, Arm] = {
    "NIPQ 4, ranges not learned": nipq(4, learn_ranges=False),
    "NIPQ 4, bits to nearest": nipq(4, stochastic_bits=False),
    "NIPQ 4, empirical noise": nipq(4, noise="empirical"),
    "LSQ 2": lsq(2),
    "NIPQ 2.5": nipq(2.5),
    "NIPQ 2.5, ranges not learned": nipq(2.5, learn_ranges=False),
    "NIPQ 2.5, bits to nearest": nipq(2.5, stochastic_bits=False),
}
CONTRASTS = (
    (LEARNED, "LSQ 4"), (LEARNED, "NIPQ fixed 4"), ("LSQ with the bits of NIPQ 4", "LSQ 4"),
    (LEARNED, "LSQ with the bits of NIPQ 4"), ("NIPQ fixed 4", "LSQ 4"), ("NIPQ 3", "LSQ 3"), ("NIPQ 2.5", "LSQ 2"),
    ("NIPQ 2.5", "LSQ 3"), ("NIPQ 4, per tensor", LEARNED),
    ("NIPQ 4, 3 quantized epochs", LEARNED), ("NIPQ 4, 3 quantized epochs", "LSQ 4"),
    ("NIPQ 4, 3 quantized epochs", "LSQ with the bits of NIPQ 4"), ("qat 4, all defaults", "LSQ 4"),
    ("NIPQ 4, ranges not learned", LEARNED), ("NIPQ 4, bits to nearest", LEARNED),
    ("NIPQ 4, empirical noise", LEARNED), ("NIPQ 2.5, ranges not learned", "NIPQ 2.5"),
    ("NIPQ 2.5, bits to nearest", "NIPQ 2.5"), ("nipq-deploy", "uniform W4A8"),
)  # fmt: skip
"""Pairs of arms whose predictions are compared image by image."""
