"""Choose the activations that stay in float: those whose quantization adds most noise per MAC of their layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def first_that_holds(holds: Callable[[int], bool], count: int) -> int | None:
    """Return the smallest index below `count` for which `holds` is true, by bisection; None if there is none.

    Assumes that `holds` is monotone: with more activations in float, a file comes closer to the float model.
    """
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high if high < count else None
