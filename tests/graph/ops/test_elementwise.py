"""Elementwise mathematics in parts: the same values as in one piece, and the same semantics as with masks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vitslim.graph.ops import elementwise
from vitslim.graph.ops.elementwise import in_parts, just_outside, where_inside
from vitslim.graph.ops.fake_quant import MIN_SCALE, fake_quant, fake_quant_gradients
from vitslim.graph.ops.pseudo_quant import add_noise, noise_gradients, uniform_noise

LIMITS = -8, 7


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heads() -> Tensor:
    """Queries as a model computes them: a view of a product, (8, 3, 20, 16), that is not contiguous."""
    return drawn(8, 20, 3, 3, 16).permute(2, 0, 3, 1, 4)[0]


def test_parts_are_views_that_cover_all_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "PART", 100)
    x = torch.zeros(7, 30)
    parts = [part for (part,) in in_parts(x)]
    assert [len(part) for part in parts] == [3, 3, 1]
    for (part,) in in_parts(x):
        part.add_(1)
    assert torch.equal(x, torch.ones(7, 30))
    assert len(list(in_parts(x, whole=True))) == 1


@pytest.mark.parametrize("x", [drawn(9, 30, 8), heads(), torch.tensor(0.3), drawn(50)], ids=lambda x: str(x.dim()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_give_the_values_of_one_piece(x: Tensor, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, gradient = x.to(dtype), drawn(*x.shape, seed=1).to(dtype)
    scale, end, top = torch.tensor(0.2), torch.tensor(0.9), torch.tensor(7.0)

    def found() -> list[Tensor]:
        torch.manual_seed(0)
        noisy = add_noise(x, end, top, True, False)
        return [
            fake_quant(x, scale, 3, None, *LIMITS, 0),
            *fake_quant_gradients(gradient, x, scale, 3, None, LIMITS, 0),
            noisy,
            *noise_gradients(gradient, x, noisy, end, top, True),
        ]

    whole = found()
    monkeypatch.setattr(elementwise, "PART", 500)
    for one, expected in zip(found(), whole, strict=True):
        assert one.dtype == expected.dtype and one.stride() == expected.stride()
        torch.testing.assert_close(one, expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-5)


def test_gradients_are_those_of_the_definition_with_masks() -> None:
    """Both ends of the range belong to it, and a zero point moves it."""
    x = torch.tensor([-2.0, -1.6, -1.59, 0.0, 0.31, 1.4, 1.41, 3.0]) - 0.6
    gradient, scale, zero = drawn(8), torch.tensor(0.2), 3
    ratio = x / scale + zero
    inside = (ratio >= LIMITS[0]) & (ratio <= LIMITS[1])
    whole = ratio.clamp(*LIMITS).round() - torch.where(inside, ratio, torch.tensor(float(zero)))
    passed, of_scale = fake_quant_gradients(gradient, x, scale, zero, None, LIMITS, 0)
    torch.testing.assert_close(passed, gradient * inside)
    torch.testing.assert_close(of_scale, (whole * gradient).sum() / math.sqrt(8 * LIMITS[1]))


def test_the_ends_of_a_range_are_inside_just_outside_of_it() -> None:
    position = torch.tensor([-8.0, 7.0, math.nextafter(7.0, 8), -8.001, 7.001])
    found = where_inside(torch.ones(5), position, *just_outside(*LIMITS))
    assert found.tolist() == [1, 1, 1, 0, 0]
    assert where_inside(torch.ones(2), torch.tensor([0.0, 1.0]), 0.0, 1.0).tolist() == [0, 0]


def test_a_scale_that_vanished_gives_finite_gradients() -> None:
    x = torch.tensor([1e6, -1e6, 0.0])
    passed, of_scale = fake_quant_gradients(torch.ones(3), x, torch.tensor(MIN_SCALE), 0, None, LIMITS, 0)
    assert passed.tolist() == [0, 0, 1] and of_scale.isfinite()


def test_bfloat16_activations_are_divided_in_float32() -> None:
    """In bfloat16 a ratio above 64 has a resolution of one half, so that many integers would be off by one."""
    x = (10 * drawn(10_000)).to(torch.bfloat16)
    scale = torch.tensor(0.3)
    expected = fake_quant(x.float(), scale, 0, None, -128, 127, 0)
    assert torch.equal(fake_quant(x, scale, 0, None, -128, 127, 0), expected.to(torch.bfloat16))


def test_noise_is_uniform_and_differs_between_elements() -> None:
    torch.manual_seed(0)
    noise = uniform_noise(torch.Size((10, 10_001)), torch.device("cpu"), images=True)
    assert noise.shape == (10, 10_001) and noise.dtype == torch.float32
    counts = torch.histc(noise, 16, -0.5, 0.5)
    assert counts.sum() == noise.numel() and (counts / noise.numel() - 1 / 16).abs().max() < 0.004
    neighbors = torch.corrcoef(noise.flatten()[:100_000].reshape(-1, 4).T)
    assert (neighbors - torch.eye(4)).abs().max() < 0.03


def test_a_zero_point_moves_the_range() -> None:
    x = torch.tensor([-9.0, -2.0, 0.0, 0.6, 9.0])
    assert fake_quant(x, torch.tensor(0.5), 3, None, *LIMITS, 0).tolist() == [-5.5, -2, 0, 0.5, 2]
