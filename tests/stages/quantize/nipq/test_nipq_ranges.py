"""Initial ranges, forms of activations, and re-estimated batch norms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitslim.stages.quantize.histogram import Histogram
from vitslim.stages.quantize.nipq.batch_norm import batch_norms, reestimate_batch_norms
from vitslim.stages.quantize.nipq.ranges import activation_form, weight_end


def observed(values: torch.Tensor) -> Histogram:
    histogram = Histogram()
    histogram.observe(values)
    return histogram


NORMAL = torch.randn(20_000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("values", "signed", "shift"),
    [
        (NORMAL, True, 0.0),
        (NORMAL.relu(), False, 0.0),
        (nn.functional.gelu(NORMAL), False, 0.17),
        (nn.functional.hardswish(3 * NORMAL), False, 0.375),
        (0.1 * NORMAL.clamp(-1, 1), True, 0.0),  # small, but as far below zero as above
        (torch.zeros(10), False, 0.0),
    ],
    ids=["normal", "relu", "gelu", "hard-swish", "small", "zeros"],
)
def test_the_form_of_an_activation_follows_from_its_values(values: torch.Tensor, signed: bool, shift: float) -> None:
    form = activation_form(observed(values), 5, "minmax")
    assert (form.signed, form.shift) == (signed, shift)
    expected = float(values.abs().max()) if signed else float(values.max()) + shift
    assert form.end == pytest.approx(expected or 1.0)


def test_an_activation_that_is_padded_with_zeros_is_not_shifted() -> None:
    assert activation_form(observed(nn.functional.gelu(NORMAL)), 5, "minmax", shiftable=False).signed


def test_published_ranges() -> None:
    """Softplus of 3 for signed and of 6 for unsigned activations, and of the largest weight."""
    assert activation_form(observed(NORMAL), 8, "published").end == pytest.approx(3.0486, abs=1e-4)
    assert activation_form(observed(NORMAL.relu()), 8, "published").end == pytest.approx(6.0025, abs=1e-4)
    weight = torch.tensor([[0.5, -2.0], [0.1, 1.0]])
    assert float(weight_end(weight, 8, "published", False)) == pytest.approx(1.3133, abs=1e-4)


def test_ranges_of_least_error_are_narrower_for_fewer_bits() -> None:
    ends = [activation_form(observed(NORMAL), bits, "mse").end for bits in (2, 4, 8)]
    assert ends[0] < ends[1] < ends[2] <= float(NORMAL.abs().max()) + 1e-6
    weight = NORMAL[:800].reshape(8, 100)
    per_channel = weight_end(weight, 4, "mse", True)
    assert per_channel.shape == (8,) and (per_channel <= weight.abs().amax(dim=1) + 1e-6).all()
    assert weight_end(weight, 4, "minmax", False) == weight.abs().max()


def test_batch_norms_get_the_average_statistics_of_their_batches() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    batch = torch.export.Dim("batch", min=2)
    module = torch.export.export(model.eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},)).module()
    batches = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    assert len(batch_norms(module)) == 2
    assert reestimate_batch_norms(module, batches) == 3
    reference = nn.Sequential(*model).train()
    for norm in (reference[1], reference[4]):
        norm.momentum = None  # a cumulative average
        norm.reset_running_stats()
    with torch.no_grad():
        for images in batches:
            reference(images)
    found = dict(module.named_buffers())
    for place in (1, 4):
        torch.testing.assert_close(found[f"{place}.running_mean"], reference[place].running_mean)
        torch.testing.assert_close(found[f"{place}.running_var"], reference[place].running_var)
