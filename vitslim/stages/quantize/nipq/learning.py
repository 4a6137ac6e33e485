"""Phase 1 of NIPQ: weights, ranges and bits are trained with noise in place of rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.noise_form import NoiseProxy, bits_name, noise_form, proxy_states, range_name
from vitslim.graph.ops.pseudo_quant import learned_bits, round_straight
from vitslim.recipe.stages import Nipq
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.nipq.costs import Cost, total_penalty
from vitslim.training.distillation import train_with_teacher


@dataclass(frozen=True)
class Learned:
    """Result of the training with noise."""

    bits: Tensor
    """Float (n,), in the order of the proxies."""
    ends: dict[str, Tensor]
    """Largest value of the range of each tensor, by name: (), or (out,)."""
    note: LayerNote
    metrics: dict[str, float]


class BitPenalty:
    """The loss term that pulls the bits of a noise form to the target."""

    def __init__(self, states: Sequence[Tensor], limits: Tensor, costs: Sequence[Cost], weight: float) -> None:
        """states: bits parameters, () each. limits: float (n, 2), the smallest and the largest bits of each."""
        self._states, self._limits, self._costs, self._weight = states, limits, costs, weight

    def bits(self) -> Tensor:
        """Return the learned bits: float (n,)."""
        states = torch.stack(tuple(self._states))
        low, high = self._limits.to(states).unbind(dim=1)
        return learned_bits(states, low, high)

    def __call__(self) -> Tensor:
        """Return the loss of the bits rounded to integers, with the gradient of the learned ones: a scalar."""
        return self._weight * total_penalty(self._costs, round_straight(self.bits()))


def learn(
    graph: ModelGraph, config: Nipq, proxies: dict[str, NoiseProxy], costs: Sequence[Cost], context: StageContext
) -> Learned:
    """Train a graph in place with noise, and return the learned bits and ranges. Its attention must be decomposed.

    Raises StageError, with the step, if the loss is not finite.
    """
    form = noise_form(graph, proxies, stochastic=config.stochastic_bits, empirical=config.noise == "empirical")
    states = proxy_states(form, proxies)
    limits = torch.tensor([(one.low, one.high) for one in proxies.values()])
    penalty = BitPenalty([bits for _, bits in states.values()], limits, costs, config.bit_loss)
    note, metrics = train_with_teacher(
        form,
        config,
        context.data.train,
        context.graph_of,
        context.seed,
        context.progress,
        label="quantize: training with noise",
        keep=context.keep / "noise" if context.keep else None,
        epochs=range(config.train.epochs - config.quantized_epochs),
        rates=_rates(config, proxies),
        penalty=penalty if costs else None,
        earlier_outputs=context.outputs_of,
    )
    ends = {name: functional.softplus(state.detach()) for name, (state, _) in states.items()}
    return Learned(penalty.bits().detach(), ends, note, metrics)


def _rates(config: Nipq, proxies: dict[str, NoiseProxy]) -> dict[str, float]:
    """Return the learning rates of ranges and bits, as factors of that of the weights.

    A step changes a range parameter by about its learning rate; `range_lr` is relative to the range, the softplus.
    """
    rates = {bits_name(name): config.bit_lr / config.train.lr for name in proxies}
    for name, proxy in proxies.items():
        end = proxy.end.detach()
        slope = -torch.expm1(-end)
        rates[range_name(name)] = config.range_lr / config.train.lr * float((end / slope).mean())
    return rates
