from __future__ import annotations

import torch

from vitslim.graph.approximate.bit_planes import (
    INT8_MAX,
    largest_integer,
    straight_through,
    symmetric_scale,
    to_symmetric,
    upper_magnitude,
    upper_plane,
)


def test_the_upper_plane_has_its_bits_and_the_lower_plane_a_signed_remainder() -> None:
    for upper in (4, 6, 8):
        top = largest_integer(upper, 4)
        integers = torch.arange(-top, top + 1, dtype=torch.float32)
        plane = upper_plane(integers, 4)
        assert (plane % 16 == 0).all()
        assert plane.abs().max() <= 16 * (2 ** (upper - 1) - 1)
        assert set((integers - plane).tolist()) <= set(range(-8, 8))
    assert largest_integer(8) == INT8_MAX
    assert upper_plane(torch.tensor([5.0]), 0).item() == 5.0


def test_the_upper_magnitude_is_truncated_towards_zero() -> None:
    found = upper_magnitude(torch.tensor([-127.0, -17.0, -15.0, 0.0, 15.0, 16.0, 127.0]), 4)
    assert found.tolist() == [-112.0, -16.0, 0.0, 0.0, 0.0, 16.0, 112.0]


def test_scales_ignore_what_is_not_counted_and_a_tensor_of_zeros_has_one() -> None:
    x = torch.tensor([[[1.0, -2.0], [100.0, 0.0]]])
    counted = torch.tensor([[[True], [False]]])
    scale = symmetric_scale(x, INT8_MAX, (1, 2), counted)
    assert scale.item() == torch.tensor(2.0 / 127).item()
    assert to_symmetric(x, scale, INT8_MAX)[0, 1, 0].item() == INT8_MAX
    zeros = torch.zeros(1, 2)
    assert to_symmetric(zeros, symmetric_scale(zeros, INT8_MAX, (1,)), INT8_MAX).tolist() == [[0.0, 0.0]]


def test_gradients_pass_straight_through() -> None:
    x = torch.tensor([0.3], requires_grad=True)
    y = straight_through(x, torch.round(x))
    (3 * y).backward()
    assert (y.item(), x.grad) == (0.0, torch.tensor([3.0]))
