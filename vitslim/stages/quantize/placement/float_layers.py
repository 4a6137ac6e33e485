"""Choose the activations that stay in float: those whose quantization adds most noise per MAC of their layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vitslim.graph.edits.fake_quant import layer_of
from vitslim.workload import read_workload

FLOAT_SHARES = (0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24)
"""Largest shares of the MACs that have float activations, one for each step."""


def float_steps(
    noise: Mapping[str, float], costs: Mapping[str, int], shares: Sequence[float] = FLOAT_SHARES
) -> list[tuple[str, ...]]:
    """Return the layers with float activations for each share of the MACs, without repeats and without empty steps.

    noise: noise of each quantized activation, by the weight of its layer. costs: MACs of these layers. Layers enter in
    the order of noise for each MAC, so layers that cost next to nothing come first; one that does not fit is passed
    over.
    """
    order = sorted(noise, key=lambda weight: noise[weight] / max(costs[weight], 1), reverse=True)
    total, steps = sum(costs[weight] for weight in noise), list[tuple[str, ...]]()
    for share in shares:
        step, room = list[str](), share * total
        for weight in order:
            if costs[weight] <= room:
                step.append(weight)
                room -= costs[weight]
        if step and tuple(step) not in steps:
            steps.append(tuple(step))
    return steps


def layer_macs(path: Path, weights: Sequence[str]) -> dict[str, int]:
    """Return the MACs of each layer for one image, as an ONNX file computes them.

    A file does not compute unused tokens, so this differs from the graph.
    """
    macs = dict.fromkeys(weights, 0)
    names = {layer_of(weight): weight for weight in weights}
    for operator in read_workload(path, 1).operators:
        if operator.layer in names:
            macs[names[operator.layer]] += operator.macs
    return macs


def expected_step(sqnr_db: float, noise: Mapping[str, float], steps: Sequence[Sequence[str]], floor_db: float) -> int:
    """Return the first step that is expected to reach an SQNR, or the last one.

    sqnr_db: without float activations, which have the given `noise` as shares of the power of the outputs. The noise of
    different activations adds up.
    """
    total, allowed = 10 ** (-sqnr_db / 10), 10 ** (-floor_db / 10)
    for index, step in enumerate(steps):
        if total - sum(noise[weight] for weight in step) <= allowed:
            return index
    return max(len(steps) - 1, 0)


class FirstThatHolds:
    """Search for the smallest index below `count` at which a condition holds, from a guess.

    Assumes that the condition is monotone: with more activations in float, a file comes closer to the float model. The
    guess is tried first, then its neighbor, then the middle of the open interval.
    """

    def __init__(self, count: int, guess: int) -> None:
        self._low, self._high, self._count, self._guess = -1, count, count, guess

    @property
    def found(self) -> int | None:
        """The smallest index at which the condition is known to hold; None if there is none yet."""
        return self._high if self._high < self._count else None

    def next(self) -> int | None:
        """Return the index to try next; None if the search has ended."""
        if self._high - self._low <= 1:
            return None
        if self._low == -1 and self._high == self._count:
            return self._guess
        if self._high == self._guess:
            return self._guess - 1
        if self._low == self._guess:
            return self._guess + 1
        return (self._low + self._high) // 2

    def tell(self, index: int, holds: bool) -> None:
        """Give the result at the index of `next`."""
        self._low, self._high = (self._low, index) if holds else (index, self._high)
