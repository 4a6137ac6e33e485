"""The losses of token predictors as formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from vitslim.training.distillation.kept_tokens import ratio_loss, token_loss


def test_ratio_loss_is_the_squared_distance_of_each_image() -> None:
    first = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]])
    second = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]])
    expected = ((0.25**2 + 0.0) / 2 + (0.0 + 0.25**2) / 2) / 2
    assert ratio_loss((first, second), (0.5, 0.25)).item() == pytest.approx(expected)


def test_token_loss_compares_kept_tokens_only() -> None:
    student, teacher = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    decision = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    divergences = []
    for image, token in ((0, 1), (0, 3), (1, 4)):
        ours, theirs = (functional.layer_norm(x[image, token], (8,)).softmax(0) for x in (student, teacher))
        divergences.append(float((theirs * (theirs / ours).log()).sum()))
    assert token_loss(student, teacher, decision).item() == pytest.approx(sum(divergences) / 3, rel=1e-5)
    assert token_loss(teacher, teacher, decision).item() == pytest.approx(0, abs=1e-6)
    assert token_loss(3 * teacher, teacher, decision).item() == pytest.approx(0, abs=1e-4)
    assert token_loss(student, teacher, torch.zeros(2, 4)).item() == 0
