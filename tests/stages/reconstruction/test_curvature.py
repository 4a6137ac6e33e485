"""Damping of curvatures from few rows."""

from __future__ import annotations

import pytest
import torch

from vitslim.stages.reconstruction.curvature import DAMPING, Curvature, damped, effective_rows


def test_unequal_weights_lower_the_effective_number_of_rows() -> None:
    assert effective_rows(torch.ones(50)) == 50
    assert effective_rows(torch.tensor([0.0, 3.0, 0.0])) == 1
    assert effective_rows(torch.tensor([1.0, 1.0, 1.0, 3.0])) == 3  # 36 / 12
    weights = torch.rand(20, generator=torch.Generator().manual_seed(0))
    assert effective_rows(7 * weights) == pytest.approx(effective_rows(weights))
    assert 1 < effective_rows(weights) < 20


def test_damping_adds_one_sample_in_every_direction() -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = rows.T @ rows
    once = rows.square().mean() * torch.eye(6, dtype=torch.float64)
    many = damped(gram, float("inf"))
    torch.testing.assert_close(many, gram + 40 * DAMPING * once)
    torch.testing.assert_close(damped(gram, 40), many + 6 * once)  # six more rows, one per direction
    assert bool((torch.linalg.eigvalsh(damped(torch.zeros(6, 6), 1)) > 0).all())


def test_few_rows_are_damped_more_on_both_factors() -> None:
    x, g = (torch.randn(8, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (16, 12))
    few, many = (Curvature.of(x.T @ x, g.T @ g, seen) for seen in (8.0, 8e6))
    for name in ("inputs", "outputs"):
        spread = [torch.linalg.cond(getattr(one, name)) for one in (few, many)]
        assert spread[0] < 0.1 * spread[1], name
    torch.testing.assert_close(few.inputs, Curvature.of_rows(x.T @ x, 12, 8.0).inputs)
