"""Costs of bits, and the choice of widths under a limit."""

from __future__ import annotations

import pytest
import torch

from vitslim.stages.quantize.nipq.costs import AverageBits, BitOperations, Cost, Gemms, Latency, StoredSize
from vitslim.stages.quantize.nipq.widths import choose_widths, smallest_widths

ALL = tuple(range(2, 9))
SIZES = torch.tensor([100.0, 300.0, 600.0], dtype=torch.float64)


def gemms() -> Gemms:
    """Two layers with the activations 2 and 3, of which the second reads pixels, and a matmul in float."""
    return Gemms(torch.tensor([2, 4, 3]), torch.tensor([0, 1, 3]), tensors=3)


def test_average_bits_are_weighted_by_elements() -> None:
    cost = AverageBits(SIZES, 4)
    assert cost.deployed(torch.tensor([8, 4, 2])) == pytest.approx((800 + 1200 + 1200) / 1000)
    assert float(cost.penalty(torch.tensor([8.0, 4.0, 2.0]))) == pytest.approx((800 - 0.5) / 2**23)


def test_bit_operations_count_both_operands_and_pixels_and_floats() -> None:
    macs = torch.tensor([[5e8, 2e9, 1e9], [1e9, 2e9, 1e9]], dtype=torch.float64)
    cost = BitOperations(gemms(), macs, 10)
    wide = 1 * 5 * 6 + 2 * 8 * 3 + 1 * 32 * 32
    assert cost.deployed(torch.tensor([5, 3, 6])) == pytest.approx(wide)
    assert cost.deployed(torch.tensor([4, 3, 6])) == pytest.approx(wide - 30 + 4 * 6)
    assert cost.deployed(torch.tensor([4, 3, 4])) == pytest.approx(wide - 30 + 0.5 * 4 * 4)
    assert float(cost.penalty(torch.tensor([5.0, 3.0, 6.0]))) == pytest.approx(3 * (wide - 10 - 0.5))


def test_a_file_stores_containers_of_four_and_eight_bits() -> None:
    cost = StoredSize(1e6 * torch.tensor([1.0, 1.0, 0.0]), 0.25, 1)
    assert cost.deployed(torch.tensor([3, 5, 7])) == pytest.approx(0.5 + 1.0 + 0.25)
    assert float(cost(torch.tensor([4.0, 6.0, 7.0]))) == pytest.approx(0.5 + 0.75 + 0.25)


def test_the_wider_operand_determines_the_latency() -> None:
    us = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [4.0, 4.0, 4.0]], dtype=torch.float64)
    cost = Latency(gemms(), us, 0.5)
    assert cost.deployed(torch.tensor([4, 4, 4])) == pytest.approx((1 + 2 + 4) / 12)
    assert cost.deployed(torch.tensor([4, 4, 5])) == pytest.approx((2 + 2 + 4) / 12)
    bits = torch.tensor([4.0, 4.0, 6.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(cost(bits), bits)
    assert gradient.tolist() == pytest.approx([0, 0, 0.25 / 12])


@pytest.mark.parametrize("limit", [2.0, 3.3, 4.0, 5.7, 8.0])
def test_widths_meet_the_limit_and_stay_near_the_learned_bits(limit: float) -> None:
    learned = torch.tensor([6.4, 3.6, 4.4])
    cost = AverageBits(SIZES, limit)
    widths = choose_widths(learned, [ALL] * 3, cost)
    assert cost.deployed(widths) <= limit
    nearest = learned.round().long()
    if limit >= cost.deployed(nearest):
        assert (widths >= nearest).all() and (widths - learned).max() < 1
    else:
        assert widths.sum() <= nearest.sum()


def test_bits_above_the_target_are_lowered_alike() -> None:
    """Tensors of any size lose one bit before one of them loses two."""
    sizes = torch.tensor([10.0, 1000.0, 100.0, 5000.0], dtype=torch.float64)
    widths = choose_widths(torch.tensor([4.9, 5.0, 4.8, 4.7]), [ALL] * 4, AverageBits(sizes, 4))
    assert widths.tolist() == [4, 4, 4, 4]


def test_sets_of_widths_fill_the_budget_by_the_learned_bits() -> None:
    """All round to 4 bits; the tensor with the most learned bits gets 8 as long as the limit allows."""
    sizes = torch.tensor([100.0, 100.0, 100.0, 100.0], dtype=torch.float64)
    widths = choose_widths(torch.tensor([4.1, 5.5, 4.2, 5.9]), [(4, 8)] * 4, AverageBits(sizes, 6))
    assert widths.tolist() == [4, 8, 4, 8]


def test_both_operands_become_narrow_together() -> None:
    us = torch.tensor([[1.0], [3.0], [6.0]], dtype=torch.float64)
    cost = Latency(Gemms(torch.tensor([1]), torch.tensor([0]), tensors=2), us, 0.3)
    learned, allowed = torch.tensor([7.0, 7.5]), [(4, 8)] * 2
    assert choose_widths(learned, allowed, cost, [(1, 0)]).tolist() == [4, 4]
    with pytest.raises(ValueError, match=r"above the limit of 0\.3"):
        choose_widths(learned, allowed, cost)


def test_an_impossible_limit_is_refused_with_the_smallest_cost() -> None:
    cost: Cost = AverageBits(SIZES, 1.5)
    assert cost.deployed(smallest_widths([ALL] * 3)) == 2
    with pytest.raises(ValueError, match=r"the smallest cost is 2, above the limit of 1\.5"):
        choose_widths(torch.tensor([2.0, 3.0, 4.0]), [ALL] * 3, cost)
