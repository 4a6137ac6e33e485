"""Settings of FACT, from the packaged file or a user's, with changed keys."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from vitslim.backends.simulated.settings import Positive, Settings, merged, packaged, read_settings, validated
from vitslim.recipe.accelerators import EagerPrediction, FactSettings, Fraction, MixedFfn

PACKAGED = "fact.yaml"
IMAGE_KEYS = ("ep.", "stated.")
"""Beginnings of the assumed keys that only the functional half can vary once images were counted."""
ASSUMED = (
    "ep.topk_ratio", "ep.onehot_margin", "ffn.hi_fraction", "ffn.int4_rate", "mult", "n_ep", "sram_kb", "dram_gbps",
    "fill_cycles", "operand_reuse", "energy.scale_28nm", "energy.mult_4x8", "energy.mult_4x4", "energy.log_add_pj",
)  # fmt: skip
STATED = ("stated.columns", "stated.rows", "stated.high")
"""Assumed keys that are used only without images."""

Range = Annotated[tuple[float, float], Field(strict=False)]


class Stated(Settings):
    """Fractions that replace the counts of the functional half."""

    columns: Fraction
    rows: Fraction
    high: Fraction


class LogicEnergy(Settings):
    """Energies of operations relative to the 45 nm table."""

    scale_28nm: Positive
    mult_4x8: Positive
    mult_4x4: Positive
    log_add_pj: Positive


class FactSpec(Settings):
    """One FACT chip; `fact.yaml` describes every key and gives the source of its value."""

    ep: EagerPrediction
    ffn: MixedFfn
    stated: Stated
    clock_ghz: Positive
    mult: PositiveInt
    n_ep: PositiveInt
    sram_kb: PositiveInt
    dram_gbps: Positive
    fill_cycles: NonNegativeInt
    operand_reuse: PositiveInt
    out_of_order: bool
    diagonal_storage: bool
    energy: LogicEnergy
    plausible: dict[str, Range]

    @model_validator(mode="after")
    def _check_ranges(self) -> FactSpec:
        for key, (low, high) in self.plausible.items():
            if key not in ASSUMED + STATED:
                raise ValueError(f"plausible: '{key}' is not an assumed key")
            if low > high:
                raise ValueError(f"plausible.{key}: {low:g} exceeds {high:g}")
        return self

    @property
    def approximation(self) -> FactSettings:
        """The settings of the functional half."""
        return FactSettings(ep=self.ep, ffn=self.ffn)

    @property
    def predicts(self) -> bool:
        """Whether the prediction unit works: any decision needs it."""
        return self.ep.topk_ratio < 1 or self.ep.onehot_margin is not None or self.ffn.hi_fraction != 0

    @property
    def low_rate(self) -> int:
        """MACs of an INT4 token in the time of an INT8 MAC."""
        return self.ffn.int4_rate if self.diagonal_storage else 1

    @property
    def bytes_per_cycle(self) -> float:
        """DRAM bandwidth in bytes per cycle."""
        return self.dram_gbps / self.clock_ghz

    @property
    def peak_gops(self) -> float:
        """Peak at INT8 in 10^9 operations per second."""
        return 2 * self.mult * self.clock_ghz

    def with_value(self, key: str, value: float) -> FactSpec:
        """Return the settings with another value of a dotted key. Raises UsageError for an invalid value."""
        outer, _, inner = key.partition(".")
        current = getattr(self, outer)
        old = getattr(current, inner) if inner else current
        new: Any = int(value) if isinstance(old, int) else value
        base = self.model_dump()
        changed = merged(base, {outer: {inner: new} if inner else new})
        return validated(FactSpec, changed, base, "sim: fact")

    def value(self, key: str) -> Any:
        """Return the value of a dotted key."""
        outer, _, inner = key.partition(".")
        return getattr(getattr(self, outer), inner) if inner else getattr(self, outer)


@cache
def packaged_spec() -> FactSpec:
    """Return the packaged settings."""
    return load_spec()


def load_spec(overrides: Mapping[str, Any] | None = None, path: Path | None = None) -> FactSpec:
    """Return the packaged settings or those of a file, with some keys replaced; nested mappings are merged.

    Raises InputError for a file that is missing or not a YAML mapping, UsageError for unknown keys and invalid values.
    """
    base = packaged(__package__, PACKAGED)
    own = {key: value for key, value in (read_settings(path) if path else {}).items() if key != "target"}
    values = merged(merged(base, own), overrides or {})
    return validated(FactSpec, values, base, str(path) if path and not overrides else "sim: fact")
