"""Losses of token predictors: the fraction of tokens that they keep, and the features of the tokens kept at the end.

Sources: DynamicViT (Rao et al., NeurIPS 2021), TPS (Wei et al., CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vitslim.training.engine.collectives import share_of_total


def ratio_loss(decisions: Sequence[Tensor], fractions: Sequence[float]) -> Tensor:
    """Return the squared distance of the kept fraction from its target, averaged over images and predictors.

    decisions: (B, N) of zeros and ones of each predictor, over the tokens before the first one. fractions: the target
    of each, in (0, 1]. Returns a scalar.
    """
    distances = [(d.mean(dim=1) - target).square().mean() for d, target in zip(decisions, fractions, strict=True)]
    return torch.stack(distances).mean()


def token_loss(student: Tensor, teacher: Tensor, decision: Tensor) -> Tensor:
    """Return the KL divergence over channels from the teacher's to the student's tokens, averaged over kept tokens.

    student, teacher: (B, P + N, C) float, outputs of the same block, which are normalized over channels first as the
    final norm of a transformer does. decision: (B, N) of zeros and ones for the last N tokens. Zero if none is kept.
    With several ranks, these hold parts of one batch, and the mean over its images is that over all kept tokens.
    """
    patches = decision.shape[1]
    ours, theirs = (_log_distribution(tokens[:, -patches:]) for tokens in (student, teacher))
    divergence = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=2)
    kept = decision.detach()
    return (divergence * kept).sum() / share_of_total(kept.sum(), len(kept), least=1.0)


def _log_distribution(tokens: Tensor) -> Tensor:
    normalized = functional.layer_norm(tokens.float(), tokens.shape[-1:])
    return functional.log_softmax(normalized, dim=-1)
