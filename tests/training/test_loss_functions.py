from __future__ import annotations

import math

import pytest
import torch

from vitslim.training import hard_loss, soft_loss


def test_soft_loss_by_hand() -> None:
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    student = torch.zeros(1, 2)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert soft_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert soft_loss(student.expand(4, 2), teacher.expand(4, 2)).item() == pytest.approx(expected, rel=1e-5)


def test_soft_loss_is_zero_for_the_same_distribution_and_positive_otherwise() -> None:
    logits = torch.randn(5, 7)
    assert soft_loss(logits + 3, logits, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert soft_loss(torch.randn(5, 7), logits, 2.0).item() > 0


def test_squared_temperature_keeps_the_size_of_the_gradient() -> None:
    teacher = torch.randn(8, 5, dtype=torch.float64)
    norms = []
    for temperature in (50.0, 200.0):
        student = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        torch.autograd.backward(soft_loss(student, teacher, temperature))
        norms.append(student.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_hard_loss_by_hand_with_and_without_smoothing() -> None:
    logits, labels = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([0])
    plain, other = -math.log(0.75), -math.log(0.25)
    assert hard_loss(logits, labels).item() == pytest.approx(plain, rel=1e-5)
    assert hard_loss(logits, labels, 0.2).item() == pytest.approx(0.9 * plain + 0.1 * other, rel=1e-5)
