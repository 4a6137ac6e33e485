"""N:M masks: mathematics. No model."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vitslim.sparsity import device_bytes, skips_multiplications
from vitslim.stages.prune.masks import magnitude_inside
from vitslim.stages.prune.two_four.patterns import TWO_OF_FOUR, keeps_pattern, obstacles, pattern_mask

SMALL_INTEGERS = st.integers(-4, 4).map(float)
"""Few values, so that ties are common."""


def weights(values: st.SearchStrategy[float]) -> st.SearchStrategy[torch.Tensor]:
    shapes = st.tuples(st.integers(1, 5), st.integers(1, 6).map(lambda groups: 4 * groups))
    return shapes.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=values)).map(torch.from_numpy)


def mask_of(weight: torch.Tensor) -> torch.Tensor:
    return pattern_mask(weight.abs())


ANY_WEIGHT = weights(st.one_of(SMALL_INTEGERS, st.floats(-(2.0**64), 2.0**64, width=32)))


@given(ANY_WEIGHT)
@settings(deadline=None)
def test_mask_keeps_the_best_of_the_six_patterns(weight: torch.Tensor) -> None:
    mask = mask_of(weight)
    assert mask.dtype == torch.bool
    assert keeps_pattern(mask, TWO_OF_FOUR)
    size = weight.abs().double().reshape(-1, 4)
    kept = (size * mask.reshape(-1, 4)).sum(dim=1)
    best = torch.stack([size[:, list(pair)].sum(dim=1) for pair in combinations(range(4), 2)]).amax(dim=0)
    assert torch.equal(kept, best)


@given(ANY_WEIGHT)
@settings(deadline=None)
def test_mask_applied_twice_changes_nothing(weight: torch.Tensor) -> None:
    masked = weight * mask_of(weight)
    assert torch.equal(masked * mask_of(masked), masked)


def test_ties_keep_the_lower_index() -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, -1.0, 1.0]])
    assert mask_of(weight).tolist() == [[True, True, False, False] * 2 + [True, True, False, False]]


@pytest.mark.parametrize("shape", [(4, 6), (4,), (2, 4, 4)])
def test_mask_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        mask_of(torch.zeros(shape))


def test_one_wrong_group_breaks_the_pattern() -> None:
    mask = mask_of(torch.randn(8, 16))
    mask[3, 8:12] = torch.tensor([True, True, True, False])
    assert not keeps_pattern(mask, TWO_OF_FOUR)


def test_magnitude_inside_the_masks_is_a_fraction_of_all_masked_weights() -> None:
    weights = {
        "a": torch.tensor([[4.0, -3.0, 2.0, 1.0]]),
        "b": torch.tensor([[0.0, 5.0, -5.0, 0.0]]),
        "c": torch.ones(3),
    }
    masks = {name: mask_of(weights[name]) for name in ("a", "b")}
    assert magnitude_inside(weights, masks) == 17 / 20
    assert magnitude_inside({"a": torch.zeros(1, 4)}, {"a": mask_of(torch.zeros(1, 4))}) == 1.0


def test_a_layer_of_100x50_has_both_reasons() -> None:
    assert obstacles(100, 50) == "100 outputs are not a multiple of 8 and 50 inputs are not a multiple of 16"
    assert obstacles(96, 50) == "50 inputs are not a multiple of 16"
    assert obstacles(96, 48) == ""


@pytest.mark.parametrize(
    ("pattern", "bits", "bytes_of_64"),
    [
        ("2:4", 16, 72),
        ("2:4", 8, 40),
        ("2:4", 4, 24),
        ("2:4-pairs", 4, 20),
        ("2:4-pairs", 8, 64),
        ("1:4", 8, 20),
        ("4:8", 8, 44),
    ],
)
def test_bytes_on_a_device(pattern: str, bits: int, bytes_of_64: int) -> None:
    assert device_bytes(pattern, 8, 8, bits) == bytes_of_64
    skipped = {("2:4", 16), ("2:4", 8), ("2:4-pairs", 4)}
    assert skips_multiplications(pattern, bits) == ((pattern, bits) in skipped)
