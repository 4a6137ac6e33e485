"""Settings of SpAtten, from the packaged files or a user's, with changed keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from vitslim.backends.simulated.settings import Positive, Settings, merged, packaged, read_settings, validated
from vitslim.recipe.accelerators import Cascade, Fraction, LocalValues, ProgressiveQuantization, SpattenSettings

PACKAGED = "spatten.yaml"
EIGHTH = "spatten_eighth.yaml"
TARGETS: Mapping[str, str | None] = {"spatten": None, "spatten-1/8": EIGHTH}
"""Target to the file with the keys that differ from `PACKAGED`."""
QUANTIZED_BITS = 8


class Stated(Settings):
    """Counts that replace those of the functional half."""

    refetch: Fraction


class TopK(Settings):
    """The engine that selects tokens, heads and values."""

    width: PositiveInt
    rounds: Literal["as_shipped", "correct"]
    comparators: PositiveInt


class FullyConnected(Settings):
    """Widths of fully connected layers on SpAtten-e2e."""

    weight_bits: Literal[8, 12]
    activation_bits: Annotated[int, Field(ge=4, le=32)]


class Power(Settings):
    """Power of the chip at a reference throughput, and energy of DRAM."""

    compute_w: Positive
    sram_w: Positive
    at_tflops: Positive
    static_share: Fraction
    dram_pj_per_bit: Positive


class SpattenSpec(Settings):
    """One SpAtten chip; `spatten.yaml` describes every key and gives the source of its value."""

    model: Literal["released", "refined"]
    token: Cascade
    head: Cascade
    value: LocalValues
    pq: ProgressiveQuantization
    stated: Stated
    clock_ghz: Positive
    qk_mult: PositiveInt
    pv_mult: PositiveInt
    word_bits: PositiveInt
    kv_sram_kb: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]
    dram_gbps: Positive
    channels: PositiveInt
    dram_efficiency: Annotated[float, Field(ge=0.7, le=0.9, strict=False)]
    topk: TopK
    fc: FullyConnected
    energy: Power

    @property
    def approximation(self) -> SpattenSettings:
        """The settings of the functional half."""
        return SpattenSettings(token=self.token, head=self.head, value=self.value, pq=self.pq)

    @property
    def bytes_per_cycle(self) -> float:
        """DRAM bandwidth that is reached, in bytes per cycle."""
        return self.dram_gbps * self.dram_efficiency / self.clock_ghz

    @property
    def peak_tops(self) -> float:
        """Peak of both arrays in 10^12 operations per second."""
        return 2 * (self.qk_mult + self.pv_mult) * self.clock_ghz / 1e3


def load_spec(target: str, overrides: Mapping[str, Any] | None = None, path: Path | None = None) -> SpattenSpec:
    """Return the packaged settings of a target or those of a file, with some keys replaced; nested mappings are merged.

    Raises InputError for a file that is missing or not a YAML mapping, UsageError for unknown keys and invalid values.
    """
    changed = TARGETS[target]
    base = packaged(__package__, PACKAGED)
    base = merged(base, packaged(__package__, changed)) if changed else base
    own = {key: value for key, value in (read_settings(path) if path else {}).items() if key != "target"}
    values = merged(merged(base, own), overrides or {})
    return validated(SpattenSpec, values, base, str(path) if path and not overrides else f"sim: {target}")
