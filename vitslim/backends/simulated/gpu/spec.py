"""Settings of a GPU with tensor cores, from a packaged file or a user's, with changed keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveInt

from vitslim.backends.simulated.gpu.tensor_core import TILES, Chip, Constants
from vitslim.backends.simulated.settings import Positive, Settings, merged, packaged, read_settings, validated
from vitslim.errors import UsageError, closest
from vitslim.recipe.backend_names import SIMULATED_TARGETS

GPUS = tuple(target for target, family in SIMULATED_TARGETS.items() if family == "gpu")
"""Names of packaged chips."""
HARDWARE = {"multiprocessors", "clock_mhz", "ops", "dram_gbps", "l2_mb", "l2_bytes_per_clock"}
"""Keys whose change makes the chip another one, to which the constants are not fitted."""
Precision = Literal["fp16", "fp8", "int8", "int4"]
Fraction = Annotated[float, Field(gt=0, le=1, strict=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=False)]


class Fitted(Settings):
    """`Constants` in a settings file."""

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
        """Convert to the type of the tensor-core model."""
        return Constants(**self.model_dump())


class Pair(Settings):
    """Constants of dense GEMMs and of GEMMs with 2:4 weights."""

    dense: Fitted
    sparse: Fitted


class FittedPrecisions(Settings):
    """Constants by precision; INT4 and FP8 use those of INT8."""

    fp16: Pair
    int8: Pair


class Errors(Settings):
    """Errors of the model on held-out folds, in percent."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    rows: PositiveInt
    mean: float
    median: float
    p90: float


class Calibration(Settings):
    """The fit of the constants: data, date and errors. Written by scripts/calibrate_gpu.py, never by hand."""

    chip: str
    date: str
    rows: PositiveInt
    source: str
    folds: PositiveInt
    lengths: dict[str, Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]]
    """M, N and K: 5th and 95th percentile of the fitted GEMMs. Outside of them an estimate is an extrapolation."""
    errors: dict[str, Errors]
    """Errors by dtype and `dense` or `2:4`, such as `FP16 dense`; `pooled` is over all GEMMs."""
    constants: FittedPrecisions


class Ops(Settings):
    """Dense operations (2 per MAC) of a multiprocessor in a clock; 2:4 doubles them. None: no such instruction."""

    fp16: PositiveInt
    int8: PositiveInt
    int4: PositiveInt | None
    fp8: PositiveInt | None


class Launch(Settings):
    """Kernel launches."""

    mode: Literal["graph", "eager"]
    graph_gap_us: NotNegative
    eager_us: NotNegative


class Memory(Settings):
    """Kernels other than GEMMs and attention, which are bound by memory."""

    floor_us: NotNegative
    efficiency: Fraction
    """Fraction of the DRAM bandwidth that they reach."""


class Attention(Settings):
    """Fused attention."""

    efficiency: Fraction
    tile: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]


class TwoFour(Settings):
    """GEMMs with 2:4 weights in a model."""

    copy_result: bool
    """Whether a second kernel transposes the result."""


class Power(Settings):
    """Board power."""

    limit_w: Positive
    fraction: Fraction


class GpuSpec(Settings):
    """One GPU; `a100.yaml` describes every key and gives the source of its value."""

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
        """Convert to the type of the tensor-core model."""
        return Chip(
            self.multiprocessors, self.clock_mhz, self.dram_gbps,
            self.l2_bytes_per_clock * self.clock_mhz / 1e3, self.l2_mb,
        )  # fmt: skip

    def runs_as(self, bits: int, float8: bool = False) -> Precision:
        """Return the precision that multiplies operands of `bits` bits.

        Operands of more than 8 bits run in FP16, and so do 8-bit floats when the chip has no FP8 instruction; 4-bit
        operands run in INT8 when it has no INT4 instruction.
        """
        if bits > 8 or (float8 and self.ops.fp8 is None):
            return "fp16"
        if float8:
            return "fp8"
        return "int4" if bits <= 4 and self.ops.int4 else "int8"

    @property
    def narrowest(self) -> int:
        """Bits of the narrowest operands that the chip multiplies; narrower ones are widened to it."""
        return 4 if self.ops.int4 else 8

    def rate(self, precision: Precision, sparse: bool) -> float:
        """Return operations per multiprocessor and clock."""
        ops = self.ops
        rates = {"fp16": ops.fp16, "fp8": ops.fp8 or ops.fp16, "int8": ops.int8, "int4": ops.int4 or ops.int8}
        dense = rates[precision]
        return dense * (2 if sparse else 1)

    def peak_tops(self, precision: Precision, sparse: bool = False) -> float:
        """Return the peak rate of the chip in 10^12 operations per second."""
        return self.rate(precision, sparse) * self.multiprocessors * self.clock_mhz / 1e6

    def constants(self, precision: Precision, sparse: bool) -> Constants:
        """Return the fitted constants; INT4 and FP8 use those of INT8."""
        fitted = self.calibration.constants
        pair = fitted.fp16 if precision == "fp16" else fitted.int8
        return (pair.sparse if sparse else pair.dense).constants()

    def provenance(self, precision: Precision, sparse: bool, m: int, n: int, k: int) -> tuple[str, str]:
        """Return the calibration of a GEMM's time and its expected error."""
        if not self.calibrated or precision in {"int4", "fp8"}:
            return "uncalibrated", "unknown"
        kind = "2:4" if sparse else "dense"
        names = ("INT8",) if precision == "int8" else ("FP16", "BF16")
        found = [e for name in names if (e := self.calibration.errors.get(f"{name} {kind}"))]
        means = [e.mean for e in found] or [self.calibration.errors["pooled"].mean]
        ranges = self.calibration.lengths
        inside = all(ranges[name][0] <= size <= ranges[name][1] for name, size in zip("MNK", (m, n, k), strict=True))
        error = f"{sum(means) / len(means):.0f} %"
        return (
            f"{self.calibration.rows} measured GEMMs, fitted {self.calibration.date}",
            f"{error} (mean, unseen shapes)" if inside else f"extrapolated ({error} inside the fitted lengths)",
        )


def load_gpu(name: str, overrides: Mapping[str, Any] | None = None, path: Path | None = None) -> GpuSpec:
    """Return a packaged chip, or a user's file on top of it, with some keys replaced; nested mappings are merged.

    Raises UsageError for an unknown chip, unknown keys and invalid values, InputError for a file that cannot be read.
    """
    if name not in GPUS:
        raise UsageError(f"there is no packaged GPU '{name}'", closest(name, GPUS))
    base = merged(packaged(__package__, "a100.yaml"), packaged(__package__, f"{name}.yaml"))
    base["calibration"] = packaged(__package__, f"{base['calibrated_on']}.calibration.yaml")
    own = read_settings(path) if path else {}
    values = merged(merged(base, {key: value for key, value in own.items() if key != "target"}), overrides or {})
    changed = HARDWARE & ({*own, *(overrides or {})})
    if changed and "calibration" not in own:
        values["chip"] = own.get("chip", f"{name} with another {', '.join(sorted(changed))}")
    return validated(GpuSpec, values, base, str(path) if path and not overrides else f"sim: {name}")
