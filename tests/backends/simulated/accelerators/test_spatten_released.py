"""The released model against a slow reference that counts query by query."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitslim.backends.simulated.spatten.head_work import NO_SELECTION, HeadWork
from vitslim.backends.simulated.spatten.released import released_time
from vitslim.backends.simulated.spatten.selection import correct_rounds, shipped_rounds
from vitslim.backends.simulated.spatten.spec import SpattenSpec, load_spec


def make_work(queries: list[int], keys: list[int], dim: int = 64, bits: int = 8) -> HeadWork:
    """One image and one layer; a head for each entry."""
    q, k = (np.array(values, np.int64).reshape(1, 1, -1) for values in (queries, keys))
    key_bits, none = np.array(bits), np.full_like(q, NO_SELECTION)
    zero = np.zeros_like(q)
    return HeadWork(q, k, k, k, zero, none, np.array(dim), key_bits, key_bits, key_bits, np.array(0))


def reference(work: HeadWork, spec: SpattenSpec) -> int:
    """Cycles of one layer, one query at a time."""
    per_cycle = spec.qk_mult // int(work.dim)
    bits = int(work.key_bits)
    bits = 8 if bits == 6 or bits > 8 else bits
    cycles, last = 0, 0
    for queries, keys in zip(work.queries.flat, work.keys.flat, strict=True):
        if queries == 0:
            continue
        last = math.ceil(keys / per_cycle)
        for _ in range(2):
            transactions = last * per_cycle * int(work.dim) * bits // 8 // 32
            cycles += math.ceil(transactions / spec.channels)
        for _ in range(queries):
            done = 0
            while done < keys:
                cycles, done = cycles + 1, done + per_cycle
    softmax = 7 + 21 + 23 + 29 + 7 + last
    return cycles + (1 + 1 + 9) + softmax + 1 + 1 + (1 + 1 + 1)


@pytest.mark.parametrize("bits", [4, 6, 8, 10, 12])
@pytest.mark.parametrize(("mult", "channels", "dim"), [(512, 16, 64), (64, 2, 64), (1024, 16, 64), (512, 16, 48)])
def test_layers_without_selection_equal_the_reference(bits: int, mult: int, channels: int, dim: int) -> None:
    spec = load_spec("spatten", {"qk_mult": mult, "channels": channels})
    for queries, keys in (([197] * 3, [197] * 3), ([1, 1], [993, 20]), ([7, 0, 64], [7, 0, 129])):
        work = make_work(queries, keys, dim, bits)
        assert released_time(work, spec).cycles.item() == reference(work, spec)


def test_a_dense_layer_of_deit_tiny_has_the_published_terms() -> None:
    time = released_time(make_work([197] * 3, [197] * 3), load_spec("spatten"))
    assert (time.fill.item(), time.dram.item(), time.drain.item()) == (14_775, 150, 128)
    assert 12 * time.cycles.item() == 180_636
    fast = released_time(make_work([197] * 3, [197] * 3), load_spec("spatten", {"qk_mult": 1024}))
    assert fast.cycles.item() == 7955
    assert 12 * fast.cycles.item() == 95_460


@pytest.mark.parametrize(
    ("candidates", "chosen", "shipped", "correct"), [(197, 138, 98.5, 187), (138, 97, 69, 136), (97, 68, 48.5, 101)]
)
def test_rounds_have_the_mean_of_simulated_selections(
    candidates: int, chosen: int, shipped: float, correct: float
) -> None:
    n, k = np.array(candidates), np.array(chosen)
    assert shipped_rounds(n, 4).item() == shipped
    assert correct_rounds(n, k, 4).item() == pytest.approx(correct, rel=0.05)


def test_a_selection_adds_one_pass_the_rounds_and_the_output() -> None:
    work = make_work([197] * 3, [197] * 3)
    selects = np.array([[[NO_SELECTION, NO_SELECTION, 138]]])
    pruned = HeadWork(**{**work.__dict__, "selected": selects})
    spec = load_spec("spatten")
    more = released_time(pruned, spec).cycles - released_time(work, spec).cycles
    assert more.item() == 25 + 98.5 + 18
