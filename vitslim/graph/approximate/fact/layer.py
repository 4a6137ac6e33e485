"""One attention of a graph under FACT, and the state that carries the important tokens to its MLP."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitslim.graph.approximate.bit_planes import INT8_MAX, straight_through, symmetric_scale, to_symmetric
from vitslim.graph.approximate.fact.decisions import Selection, important_tokens, select_entries
from vitslim.graph.approximate.fact.prediction import predicted_logits
from vitslim.graph.ops.token_decisions import DECISIONS, NONE
from vitslim.recipe.accelerators import FactSettings


class FactState(NamedTuple):
    """What a layer hands to its MLP and to the next layer."""

    high: Tensor
    """bool (B, N): tokens whose MLP is INT8."""
    counts: tuple[Tensor, ...]
    """For each layer so far int64 (B, 4): entries, columns, rows, tokens with an INT8 MLP."""
    left: tuple[Tensor, ...]
    """For each layer so far the important tokens: bool (B, N)."""


class FactLayer(nn.Module):
    """Predict one attention, and compute its selected entries with INT8 operands."""

    def __init__(self, settings: FactSettings, scale: float, prefix: int, mlp_tokens: int) -> None:
        """mlp_tokens: tokens that the MLP of the block processes, unless tokens are squeezed before it."""
        super().__init__()
        self.settings, self.scale, self.prefix, self.mlp_tokens = settings, scale, prefix, mlp_tokens

    def forward(
        self, operands: tuple[Tensor, Tensor, Tensor], predicted: tuple[Tensor, Tensor], bias: Tensor | None,
        state: FactState | None,
    ) -> tuple[Tensor, FactState]:  # fmt: skip
        """Return the output (B, H, n, e) and the state after the layer.

        operands: q (B, H, n, d), k (B, H, m, d), v (B, H, m, e). predicted: q and k from the predictor.
        """
        q, k, v = (_int8(one) for one in operands)
        with torch.no_grad():
            ep = self.settings.ep
            logits = predicted_logits(*predicted, self.scale, bias)
            found = select_entries(logits, ep.kept(logits.shape[-1]), ep.onehot_margin, self.prefix)
            high = important_tokens(found.selected, self.settings.ffn.hi_fraction, self.prefix)
            counted = _counts(found, high[:, : self.mlp_tokens])
        scores = torch.matmul(q * self.scale, k.transpose(-2, -1))
        scores = scores if bias is None else scores + bias
        # A one-hot row has one entry, whose probability is 1: the output is its row of V.
        probabilities = torch.softmax(scores.masked_fill(~found.used, float("-inf")), dim=-1)
        before = ((), ()) if state is None else (state.counts, state.left)
        return torch.matmul(probabilities, v), FactState(high, (*before[0], counted), (*before[1], high))


class CarriedTokens(nn.Module):
    """Carry the important tokens through an operator that reduces tokens between attention and MLP."""

    def __init__(self, target: Any) -> None:
        """target: the operator, a key of `DECISIONS`."""
        super().__init__()
        self.target = target

    def forward(self, state: FactState, arguments: tuple[Any, ...]) -> FactState:
        """Return the state after the operator; a token that the operator adds is important."""
        origin = DECISIONS[self.target](*arguments).origin
        tokens = arguments[0].shape[1]
        prefix = tokens - DECISIONS[self.target](*arguments).destination.shape[1]
        patches = state.high[:, prefix:].gather(1, origin.clamp(min=0)) | (origin == NONE)
        high = torch.cat([state.high[:, :prefix], patches], dim=1)
        last = torch.cat([state.counts[-1][:, :3], high.sum(dim=1, keepdim=True)], dim=1)
        return state._replace(high=high, counts=(*state.counts[:-1], last))


def _int8(x: Tensor) -> Tensor:
    """Return a tensor (B, H, n, d) in INT8 with one scale per image."""
    scale = symmetric_scale(x, INT8_MAX, (1, 2, 3))
    return straight_through(x, scale * to_symmetric(x, scale, INT8_MAX))


def _counts(found: Selection, high: Tensor) -> Tensor:
    """Return int64 (B, 4): entries, columns and rows over all heads, and important tokens."""
    computed = ~found.one_hot
    entries = (found.used & computed[..., None]).sum(dim=(1, 2, 3))
    columns = found.used.any(dim=2).sum(dim=(1, 2))
    return torch.stack([entries, columns, computed.sum(dim=(1, 2)), high.sum(dim=1)], dim=1)
