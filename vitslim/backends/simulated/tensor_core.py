"""Time of matrix products on a GPU with tensor cores, dense and 2:4: tiles, waves, split-K, L2 and DRAM.

A product is C[M, N] = A[M, K] B[K, N], A being activations and B weights; with 2:4 the weights are the sparse operand.
The kernel library is taken to choose the best of eight tiles and five splits of K. For each of them

    compute = waves * (steps along K * time of a step + fill)           one thread block on each multiprocessor
              * (1 + throttle * compute / (compute + 150 us))           the clock falls in products that last
    dram    = bytes that DRAM moves / bandwidth                         weights again for every pass that L2 cannot hold
    l2      = bytes that all thread blocks load / bandwidth of L2
    time    = floor + (compute^p + dram^p + l2^p)^(1/p)                 p large: the slowest of the three

Every term only grows with M, N and K, and the smallest of growing things grows, so that no product is ever estimated
to be faster than a smaller one. Constants are fitted to measured products (`Constants`); nothing here is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

TILES = ((256, 128), (128, 256), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64))
"""Rows and columns of the result that one thread block computes (specs: CUTLASS's tiles)."""
SPLITS = (1, 2, 4, 8, 16)
"""How many thread blocks share one tile by parts of K."""
STEP = 64
"""Elements of K in one step of the main loop."""
ACCUMULATOR_BYTES = 4
FULL_TILE = 128 * 256
THROTTLE_US = 150.0
"""Length of a product at which half of `Constants.throttle` is felt: of seven, that with the least error on folds."""
CHUNK = 4096
"""Products that are computed at once, so that a large table does not need much memory."""


@dataclass(frozen=True)
class Chip:
    """What a device can do."""

    multiprocessors: int
    clock_mhz: float
    dram_gbps: float
    l2_gbps: float
    l2_mb: float


@dataclass(frozen=True)
class Constants:
    """How much of that kernels of one precision reach, dense or 2:4. Fitted; fractions are of the chip's figures."""

    floor_us: float
    """What the smallest product takes beyond its work."""
    tiles: tuple[float, ...]
    """Fraction of the tensor cores' rate that each of `TILES` reaches in its main loop."""
    dram: float
    fill_us: float
    """Start and end of a thread block with a tile of 128 x 256; smaller tiles take their share of it."""
    sharpness: float
    """The exponent p."""
    l2: float
    reduction: float
    """Traffic of adding up split sums, against writing and reading each of them once."""
    quantization: float
    """1: a last wave that is not full costs as much as a full one; 0: it costs its share."""
    resident: float
    """Fraction of L2 that keeps weights between two passes."""
    spill: float
    """Cost of reading weights again, against reading them the first time."""
    raster: float
    """Rows of tiles that one pass over the weights serves."""
    step_us: float
    """Shortest time of a step along K, however small the tile."""
    throttle: float
    """Share by which a product that lasts far longer than `THROTTLE_US` is slower: the clock falls under full load."""


@dataclass(frozen=True)
class Widths:
    """Bytes of one element; of a 2:4 weight what it takes with its metadata, for each dense element."""

    activation: float
    weight: float
    result: float


@dataclass(frozen=True)
class GemmTime:
    """Microseconds of products, and of what they are made of at the chosen tile."""

    total_us: Floats
    compute_us: Floats
    memory_us: Floats
    """The longer of DRAM and L2."""


def gemm_time(sizes: Floats, chip: Chip, ops: float, constants: Constants, widths: Widths,
              further_bytes: Floats | float = 0.0) -> GemmTime:  # fmt: skip
    """Time of products that are alone on the device, one launch each.

    `sizes` float64 (n, 4): count, M, N, K, each at least 1; count is how many equal products one launch computes.
    `ops` is operations (2 per MAC) per multiprocessor and clock at this precision, doubled for 2:4. `further_bytes`
    is what the launch moves besides its operands, such as a residual that it adds.
    """
    parts = [
        _chunk(sizes[i : i + CHUNK], chip, ops, constants, widths,
               np.broadcast_to(further_bytes, len(sizes))[i : i + CHUNK])
        for i in range(0, len(sizes), CHUNK)
    ]  # fmt: skip
    stacked = np.concatenate(parts, axis=1) if parts else np.zeros((3, 0))
    return GemmTime(*stacked)


def _chunk(sizes: Floats, chip: Chip, ops: float, c: Constants, widths: Widths, further_bytes: Floats) -> Floats:
    """Rows total, compute, memory of each product."""
    count, m, n, k = (sizes[:, i, None, None] for i in range(4))
    tile_m, tile_n = np.array(TILES, float).T[:, None, :, None]
    split = np.array(SPLITS, float)
    down, across = np.ceil(m / tile_m), np.ceil(n / tile_n)
    blocks = count * down * across * split
    load = blocks / chip.multiprocessors
    waves = c.quantization * np.ceil(load) + (1 - c.quantization) * np.maximum(1.0, load)
    steps = np.ceil(k / split / STEP)
    rate = ops * chip.clock_mhz * np.array(c.tiles)[None, :, None]
    step_us = np.maximum(2 * tile_m * tile_n * STEP / rate, c.step_us)
    sums = np.where(split > 1, c.reduction * 2 * split * count * m * n * ACCUMULATOR_BYTES, 0.0)
    dram = c.dram * chip.dram_gbps * 1e3
    compute = waves * (steps * step_us + c.fill_us * tile_m * tile_n / FULL_TILE) + sums / dram
    compute = compute * (1 + c.throttle * compute / (compute + THROTTLE_US))
    weights = count * k * n * widths.weight
    passes = np.maximum(1.0, down / np.maximum(c.raster, chip.multiprocessors / across))
    lost = 1 - np.minimum(1.0, c.resident * chip.l2_mb * 1e6 / weights)
    moved = count * m * (k * widths.activation + n * widths.result) + further_bytes[:, None, None]
    memory = (moved + weights * (1 + (passes - 1) * lost * c.spill)) / dram
    loaded = blocks * (k / split) * (tile_m * widths.activation + tile_n * widths.weight)
    cache = loaded / (c.l2 * chip.l2_gbps * 1e3)
    return _fastest(compute, memory, cache, c)


def _fastest(compute: Floats, memory: Floats, cache: Floats, c: Constants) -> Floats:
    """Totals of the fastest tile and split, with its compute and memory time."""
    compute, memory, cache = np.broadcast_arrays(compute, memory, cache)
    longest = np.maximum(np.maximum(compute, memory), cache)
    p = c.sharpness
    total = longest * ((compute / longest) ** p + (memory / longest) ** p + (cache / longest) ** p) ** (1 / p)
    flat = total.reshape(len(total), -1)
    best = flat.argmin(axis=1)[:, None]
    found = [np.take_along_axis(x.reshape(len(total), -1), best, 1)[:, 0] for x in (total, compute, memory, cache)]
    return np.stack([c.floor_us + found[0], found[1], np.maximum(found[2], found[3])])
