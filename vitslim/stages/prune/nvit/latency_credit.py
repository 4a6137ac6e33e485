"""Credit of units for the latency that their removal saves (NViT, Yang et al., CVPR 2023).

The score of a unit is `I - eta * (Lat(W) - Lat(W without the unit))`: a unit whose removal saves more goes earlier.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vitslim.stages.prune.model_costs import ModelCosts

REFERENCE_BLOCK = 0.0808
"""Seconds of one DeiT-B block on a V100 in the published latency table, for which `eta` was chosen."""


def scaled_eta(eta: float, block_cost: float) -> float:
    """Return `eta * 0.0808 / block_cost`, which keeps the published balance of saliency and cost.

    block_cost: cost of the first block of the dense model, above zero, in the unit of all costs.
    """
    return eta * REFERENCE_BLOCK / block_cost


def unit_credits(
    costs: ModelCosts, lengths: Mapping[str, int], floors: Mapping[str, int], eta: float
) -> dict[str, float]:
    """Return the credit of one unit of each axis: `eta` times the finite difference of the cost at the current lengths.

    floors: the smallest length of each axis; at or below it there is no credit.
    """
    return {axis: eta * costs.saving(lengths, axis) if lengths[axis] > floor else 0.0 for axis, floor in floors.items()}


def ranked_scores(saliency: Mapping[str, Tensor], credit: Mapping[str, float]) -> dict[str, Tensor]:
    """Return the saliency of each unit minus the credit of its axis."""
    return {axis: values - credit[axis] for axis, values in saliency.items()}
