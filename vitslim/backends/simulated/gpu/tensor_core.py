"""Latency of GEMMs on a GPU with tensor cores, dense and 2:4: tiles, waves, split-K, L2 and DRAM.

A GEMM is C[M, N] = A[M, K] B[K, N] with activations A and weights B; with 2:4 the weights are the sparse operand.
The kernel library is assumed to choose the best of eight tiles and five splits of K. For each of them

    compute = waves * (steps along K * time of a step + fill)           one thread block on each multiprocessor
              * (1 + throttle * compute / (compute + 150 us))           the clock drops in long GEMMs
    dram    = DRAM bytes / bandwidth                                    weights again for every pass that L2 cannot hold
    l2      = bytes that all thread blocks load / L2 bandwidth
    time    = floor + (compute^p + dram^p + l2^p)^(1/p)                 large p: the slowest of the three

Every term is monotone in M, N and K, and so is their minimum over tiles and splits: a larger GEMM is never estimated to
be faster. The constants (`Constants`) are fitted to measured GEMMs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitslim.backends.simulated.simulator import Floats

TILES = ((256, 128), (128, 256), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64))
"""Rows and columns of the result that one thread block computes (tiles of CUTLASS)."""
SPLITS = (1, 2, 4, 8, 16)
"""Number of thread blocks that share one tile by splitting K."""
STEP = 64
"""Elements of K in one iteration of the main loop."""
ACCUMULATOR_BYTES = 4
FULL_TILE = 128 * 256
THROTTLE_US = 150.0
"""Duration of a GEMM at which half of `Constants.throttle` applies; chosen by cross-validation."""
CHUNK = 4096
"""Number of GEMMs computed at once, which limits the memory that a large table needs."""


@dataclass(frozen=True)
class Chip:
    """Rates and sizes of a device."""

    multiprocessors: int
    clock_mhz: float
    dram_gbps: float
    l2_gbps: float
    l2_mb: float


@dataclass(frozen=True)
class Constants:
    """Fitted constants of kernels of one precision, dense or 2:4; fractions are of the rates of the chip."""

    floor_us: float
    """Fixed time of a GEMM."""
    tiles: tuple[float, ...]
    """Fraction of the tensor-core rate that each of `TILES` reaches in its main loop."""
    dram: float
    """Fraction of the DRAM bandwidth."""
    fill_us: float
    """Prologue and epilogue of a thread block with a tile of 128 x 256; proportional to the tile for smaller ones."""
    sharpness: float
    """The exponent p."""
    l2: float
    """Fraction of the L2 bandwidth."""
    reduction: float
    """Traffic of the split-K reduction, relative to writing and reading each partial sum once."""
    quantization: float
    """Wave quantization. 1: a partial last wave costs as much as a full one; 0: it costs its fraction."""
    resident: float
    """Fraction of L2 that holds weights between two passes."""
    spill: float
    """Cost of reading weights again, relative to the first read."""
    raster: float
    """Rows of tiles that share one pass over the weights."""
    step_us: float
    """Minimum time of a main-loop iteration, for any tile."""
    throttle: float
    """Relative slowdown of GEMMs much longer than `THROTTLE_US`: the clock drops under full load."""


@dataclass(frozen=True)
class Widths:
    """Bytes of one element; for 2:4 weights with metadata, per dense element."""

    activation: float
    weight: float
    result: float


@dataclass(frozen=True)
class GemmTime:
    """Microseconds of GEMMs and of their parts at the chosen tile; float64 (n,)."""

    total_us: Floats
    compute_us: Floats
    memory_us: Floats
    """Maximum of DRAM and L2 time."""


def gemm_time(sizes: Floats, chip: Chip, ops: float, constants: Constants, widths: Widths,
              further_bytes: Floats | float = 0.0) -> GemmTime:  # fmt: skip
    """Return the time of GEMMs, one launch each, with nothing else on the device.

    `sizes` float64 (n, 4): count, M, N, K, each at least 1; one launch computes `count` identical GEMMs.
    `ops`: operations (2 per MAC) per multiprocessor and clock at this precision, doubled for 2:4. `further_bytes`:
    traffic of the launch besides its operands, such as a fused residual.
    """
    parts = [
        _chunk(sizes[i : i + CHUNK], chip, ops, constants, widths,
               np.broadcast_to(further_bytes, len(sizes))[i : i + CHUNK])
        for i in range(0, len(sizes), CHUNK)
    ]  # fmt: skip
    stacked = np.concatenate(parts, axis=1) if parts else np.zeros((3, 0))
    return GemmTime(*stacked)


def _chunk(sizes: Floats, chip: Chip, ops: float, c: Constants, widths: Widths, further_bytes: Floats) -> Floats:
    """Return total, compute and memory time of each GEMM; float64 (3, n)."""
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
    lost = 1 - 1 / np.maximum(1.0, weights / (c.resident * chip.l2_mb * 1e6))
    moved = count * m * (k * widths.activation + n * widths.result) + further_bytes[:, None, None]
    memory = (moved + weights * (1 + (passes - 1) * lost * c.spill)) / dram
    loaded = blocks * (k / split) * (tile_m * widths.activation + tile_n * widths.weight)
    cache = loaded / (c.l2 * chip.l2_gbps * 1e3)
    return _fastest(compute, memory, cache, c)


def _fastest(compute: Floats, memory: Floats, cache: Floats, c: Constants) -> Floats:
    """Return total, compute and memory time at the fastest tile and split; float64 (3, n)."""
    compute, memory, cache = np.broadcast_arrays(compute, memory, cache)
    longest = np.maximum(np.maximum(compute, memory), cache)
    p = c.sharpness
    total = longest * ((compute / longest) ** p + (memory / longest) ** p + (cache / longest) ** p) ** (1 / p)
    flat = total.reshape(len(total), -1)
    best = flat.argmin(axis=1)[:, None]
    found = [np.take_along_axis(x.reshape(len(total), -1), best, 1)[:, 0] for x in (total, compute, memory, cache)]
    return np.stack([c.floor_us + found[0], found[1], np.maximum(found[2], found[3])])
