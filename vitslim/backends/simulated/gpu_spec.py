"""Settings of a GPU with tensor cores, from a packaged file or a person's own, with overrides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveInt

from vitslim.backends.simulated.settings import Settings, merged, packaged, read_settings, validated
from vitslim.backends.simulated.spec import Positive
from vitslim.backends.simulated.tensor_core import TILES, Chip, Constants
from vitslim.errors import UsageError, closest

GPUS = ("a100", "orin", "h100", "h200")
"""Names of packaged chips."""
HARDWARE = {"multiprocessors", "clock_mhz", "ops", "dram_gbps", "l2_mb", "l2_bytes_per_clock"}
"""Keys that make another chip of it, for which the constants are not fitted."""
Precision = Literal["fp16", "int8", "int4"]
Fraction = Annotated[float, Field(gt=0, le=1, strict=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=False)]


class Fitted(Settings):
    """`Constants` as they stand in a settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    floor_us: NotNegative
    tiles: Annotated[tuple[Fraction, ...], Field(min_length=len(TILES), max_length=len(TILES))]
    dram: Positive
    fill_us: NotNegative
    sharpness: Annotated[float, Field(ge=1)]
    l2: Positive
    reduction: NotNegative
    quantization: Annotated[float, Field(ge=0, le=1)]
    resident: NotNegative
    spill: NotNegative
    raster: Annotated[float, Field(ge=1)]
    step_us: NotNegative
    throttle: NotNegative

    def constants(self) -> Constants:
        """The same as the model takes them."""
        return Constants(**self.model_dump())


class Pair(Settings):
    """Constants of dense products and of products with 2:4 weights."""

    dense: Fitted
    sparse: Fitted


class FittedPrecisions(Settings):
    """Constants by precision; what is missing takes those of int8."""

    fp16: Pair
    int8: Pair


class Errors(Settings):
    """Errors of the model on folds that the fit had not seen, in percent."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    rows: PositiveInt
    mean: float
    median: float
    p90: float


class Calibration(Settings):
    """What the constants were fitted to, and how well. Written by scripts/calibrate_gpu.py, never by hand."""

    chip: str
    date: str
    rows: PositiveInt
    source: str
    folds: PositiveInt
    lengths: dict[str, Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]]
    """M, N and K: 5th and 95th percentile of the fitted products. Beyond them an estimate is an extrapolation."""
    errors: dict[str, Errors]
    """By dtype and `dense` or `2:4`, such as `FP16 dense`; `pooled` is all of them."""
    constants: FittedPrecisions


class Ops(Settings):
    """Operations (2 a MAC) of a multiprocessor in a clock, dense; 2:4 doubles them. None: no such instruction."""

    fp16: PositiveInt
    int8: PositiveInt
    int4: PositiveInt | None


class Launch(Settings):
    """How kernels come to the device."""

    mode: Literal["graph", "eager"]
    graph_gap_us: NotNegative
    eager_us: NotNegative


class Memory(Settings):
    """Kernels that are no products."""

    floor_us: NotNegative
    efficiency: Fraction
    """Share of DRAM bandwidth that they reach."""


class Attention(Settings):
    """Fused attention."""

    efficiency: Fraction
    tile: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]


class TwoFour(Settings):
    """Products with 2:4 weights in a model."""

    copy_result: bool


class Power(Settings):
    """Board power."""

    limit_w: Positive
    fraction: Fraction


class GpuSpec(Settings):
    """One GPU; `specs/a100.yaml` explains every key and says where its value comes from."""

    chip: str
    node: str
    multiprocessors: PositiveInt
    clock_mhz: Positive
    ops: Ops
    dram_gbps: Positive
    l2_mb: Positive
    l2_bytes_per_clock: PositiveInt
    launch: Launch
    memory: Memory
    attention: Attention
    two_four: TwoFour
    power: Power
    calibrated_on: str
    """Chip whose constants are used."""
    calibration: Calibration

    @property
    def calibrated(self) -> bool:
        """Whether the constants were fitted to this chip."""
        return self.calibrated_on == self.chip

    def device(self) -> Chip:
        """What the model needs to know of it."""
        return Chip(
            self.multiprocessors, self.clock_mhz, self.dram_gbps,
            self.l2_bytes_per_clock * self.clock_mhz / 1e3, self.l2_mb,
        )  # fmt: skip

    def runs_as(self, bits: int) -> Precision:
        """The precision in which operands of so many bits are multiplied: wider ones than 8 bits in FP16, and INT4 as
        INT8 where the chip has no such instruction."""
        if bits > 8:
            return "fp16"
        return "int4" if bits <= 4 and self.ops.int4 else "int8"

    @property
    def narrowest(self) -> int:
        """Bits of the narrowest operands that the chip multiplies; narrower ones take as much."""
        return 4 if self.ops.int4 else 8

    def rate(self, precision: Precision, sparse: bool) -> float:
        """Operations per multiprocessor and clock."""
        dense = {"fp16": self.ops.fp16, "int8": self.ops.int8, "int4": self.ops.int4 or self.ops.int8}[precision]
        return dense * (2 if sparse else 1)

    def peak_tops(self, precision: Precision, sparse: bool = False) -> float:
        """10^12 operations a second of the whole chip."""
        return self.rate(precision, sparse) * self.multiprocessors * self.clock_mhz / 1e6

    def constants(self, precision: Precision, sparse: bool) -> Constants:
        """Fitted constants; INT4 takes those of INT8."""
        fitted = self.calibration.constants
        pair = fitted.fp16 if precision == "fp16" else fitted.int8
        return (pair.sparse if sparse else pair.dense).constants()

    def provenance(self, precision: Precision, sparse: bool, m: int, n: int, k: int) -> tuple[str, str]:
        """Where a product's time comes from, and its expected error."""
        if not self.calibrated or precision == "int4":
            return "uncalibrated", "unknown"
        kind = "2:4" if sparse else "dense"
        names = ("INT8",) if precision == "int8" else ("FP16", "BF16")
        found = [e for name in names if (e := self.calibration.errors.get(f"{name} {kind}"))]
        means = [e.mean for e in found] or [self.calibration.errors["pooled"].mean]
        ranges = self.calibration.lengths
        inside = all(ranges[name][0] <= size <= ranges[name][1] for name, size in zip("MNK", (m, n, k), strict=True))
        error = f"{sum(means) / len(means):.0f} %"
        return (
            f"{self.calibration.rows} measured products, fitted {self.calibration.date}",
            f"{error} (mean, unseen shapes)" if inside else f"extrapolated ({error} inside the fitted lengths)",
        )


def load_gpu(name: str, overrides: Mapping[str, Any] | None = None, path: Path | None = None) -> GpuSpec:
    """A packaged chip, or a person's file on top of it, with some keys replaced; mappings may be given in part.

    Raises UsageError for an unknown chip and for wrong keys and values, InputError for a bad file.
    """
    if name not in GPUS:
        raise UsageError(f"there is no packaged GPU '{name}'", closest(name, GPUS))
    base = merged(packaged("a100.yaml"), packaged(f"{name}.yaml"))
    base["calibration"] = packaged(f"{base['calibrated_on']}.calibration.yaml")
    own = read_settings(path) if path else {}
    values = merged(merged(base, {key: value for key, value in own.items() if key != "target"}), overrides or {})
    changed = HARDWARE & ({*own, *(overrides or {})})
    if changed and "calibration" not in own:
        values["chip"] = own.get("chip", f"{name} with another {', '.join(sorted(changed))}")
    return validated(GpuSpec, values, base, str(path) if path and not overrides else f"sim: {name}")
