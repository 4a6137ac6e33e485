"""The noise proxy: distribution of the noise, gradients, and agreement with the real quantizer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vitslim.graph.ops.fake_quant import fake_quant
from vitslim.graph.ops.pseudo_quant import (
    PSEUDO_QUANT,
    add_noise,
    learned_bits,
    levels,
    noise_gradients,
    range_state,
    rounding_error_noise,
    sampled_bits,
)

COUNT = 100_000


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_uniform_noise_has_zero_mean_and_the_variance_of_rounding() -> None:
    torch.manual_seed(0)
    end, top = torch.tensor(2.0), torch.tensor(7.0)
    x = seeded(COUNT).clamp(-1.9, 1.9)
    noise = (add_noise(x, end, top, True, False) - x) / (end / top)
    assert noise.abs().max() <= 0.5 + 1e-5
    assert noise.mean().abs() < 3 * math.sqrt(1 / 12 / COUNT)
    assert noise.var() == pytest.approx(1 / 12, rel=0.02)


def test_empirical_noise_has_the_distribution_of_the_rounding_errors() -> None:
    """Most values of a sparse tensor are nearly a multiple of the step, so the errors are far from uniform."""
    torch.manual_seed(0)
    step = torch.tensor(0.25)
    x = torch.where(seeded(COUNT) > 0.5, seeded(COUNT, seed=1), 0.01 * seeded(COUNT, seed=2))
    inside = x.abs() < 1
    drawn = rounding_error_noise(x, step, inside)
    measured = ((x / step).round() - x / step)[inside]
    found, expected = (torch.histc(one, 32, -0.5, 0.5) / one.numel() for one in (drawn, measured))
    assert drawn.abs().max() <= 0.5
    assert 0.5 * (found - expected).abs().sum() < 0.02
    assert 0.5 * (expected - 1 / 32).abs().sum() > 0.2


def test_values_outside_the_range_are_clipped_and_get_no_noise() -> None:
    x = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0])
    end, top = torch.tensor(1.0), torch.tensor(7.0)
    signed = add_noise(x, end, top, True, False)
    assert signed[[0, 1, 3, 4]].tolist() == [-1, -1, 1, 1]
    unsigned = add_noise(x, end, top, False, False)
    assert unsigned.tolist() == [0, 0, 0, 1, 1]


def test_masked_weights_get_no_noise() -> None:
    torch.manual_seed(0)
    mask = torch.rand(8, 16) > 0.5
    weight = seeded(8, 16) * mask
    for empirical in (False, True):
        noisy = add_noise(weight, torch.tensor(3.0), torch.tensor(3.0), True, empirical, mask)
        assert not noisy[~mask].any()
        assert (noisy[mask] != weight[mask]).float().mean() > 0.9


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_gradients_are_those_of_the_clipped_sum_for_fixed_noise(signed: bool, per_channel: bool) -> None:
    """Against autograd of the definition with the same draw, in double precision."""
    x = seeded(4, 50).double()
    end = (torch.tensor([0.8, 1.0, 1.2, 0.6]) if per_channel else torch.tensor(1.0)).double().requires_grad_()
    state = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    draw = torch.rand(4, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
    gradient = seeded(4, 50, seed=2).double()
    source = x.clone().requires_grad_()
    top = levels(learned_bits(state, 2, 14), signed)
    ceiling = end.reshape(-1, 1) if per_channel else end
    low = -ceiling if signed else torch.zeros_like(ceiling)
    inside = (x > low) & (x < ceiling)
    noisy = torch.where(inside, source + draw * ceiling / top, torch.where(x >= ceiling, ceiling, low))
    expected = torch.autograd.grad(noisy, (source, end, state), gradient)
    of_x, of_end, of_top = noise_gradients(gradient, x, noisy.detach(), end.detach(), top.detach(), signed)
    (of_state,) = torch.autograd.grad(levels(learned_bits(state, 2, 14), signed), state, of_top)
    for found, wanted in zip((of_x, of_end, of_state), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    sigmoid = torch.sigmoid(state)
    slope = math.log(2) * (top + 1) * 12 * sigmoid * (1 - sigmoid)
    by_hand = (-draw * ceiling / top**2 * slope * gradient * inside).sum()
    torch.testing.assert_close(of_state, by_hand.detach())


def test_the_operator_gives_the_range_and_the_bits_gradients_of_finite_differences() -> None:
    x = seeded(64, 64).requires_grad_()
    start = range_state(torch.tensor(1.5)), torch.tensor(0.3)

    def loss(end: Tensor, bits: Tensor) -> Tensor:
        torch.manual_seed(3)
        return PSEUDO_QUANT(x, end, bits, 2.0, 8.0, True, False, False).double().square().sum()

    states = [one.clone().requires_grad_() for one in start]
    # Bits are rounded in the forward pass; their gradient is that at the rounded bits, so a slope is taken there.
    of_end, of_bits = torch.autograd.grad(loss(*states), states)
    size = 1e-2
    slope = (loss(start[0] + size, start[1]) - loss(start[0] - size, start[1])) / (2 * size)
    assert float(of_end) == pytest.approx(float(slope), rel=0.02)
    assert of_bits.isfinite() and of_bits != 0


def test_many_bits_are_close_to_the_input() -> None:
    x = seeded(1000)
    end, top = x.abs().max(), float(levels(torch.tensor(14.0), True))
    rounded = fake_quant(x, end / top, 0, None, -int(top), int(top), 0)
    assert (rounded - x).abs().max() <= float(end) / (2 * (2**13 - 1)) * 1.001


@pytest.mark.parametrize("state", [-50.0, -1.0, 0.0, 1.0, 50.0])
def test_sampled_bits_stay_in_the_range_and_have_the_learned_mean(state: float) -> None:
    torch.manual_seed(0)
    bits = learned_bits(torch.full((20_000,), state), 2, 14)
    sampled = sampled_bits(bits, 2, 14)
    assert torch.equal(sampled, sampled.round()) and sampled.min() >= 2 and sampled.max() <= 14
    assert sampled.mean() == pytest.approx(float(bits[0]), abs=0.02)
    assert sampled.max() - sampled.min() <= 1


@pytest.mark.parametrize("end", [1e-4, 0.3, 2.0, 90.0])
def test_the_initial_range_is_exact(end: float) -> None:
    state = range_state(torch.tensor(end))
    assert float(torch.nn.functional.softplus(state)) == pytest.approx(end, rel=1e-4)


def test_equal_seeds_give_equal_noise() -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(PSEUDO_QUANT(seeded(100), torch.tensor(1.0), torch.tensor(0.0), 2.0, 8.0, True, True, False))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
