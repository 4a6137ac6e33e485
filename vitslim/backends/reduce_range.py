"""Backends that need weights with a reduced range: CPUs that add adjacent INT8 products in 16 bits, with saturation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDE_SUMS = {
    "amx_int8": "AMX", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "i8mm": "I8MM", "asimddp": "SDOT",
}  # fmt: skip
"""Processor flag to the instructions that add INT8 products in 32 bits."""

CPU = (":cpu", ":openvino", ":xnnpack")
"""Ends of the names of backends that run on the processor."""

ARM = ("aarch64", "arm64", "arm")
"""Machine names of ARM processors, which add INT8 products in 16 bits without saturation, or in 32 bits."""


@dataclass(frozen=True)
class ReduceRange:
    """Whether weights have a reduced range, and the reason."""

    value: bool
    reason: str


def reduce_range_for(backends: Sequence[str], flags: frozenset[str], machine: str) -> ReduceRange:
    """Return whether any measured backend needs weights with a reduced range.

    backends: names of measured backends. flags: those of the processor, as Linux lists them. machine: its architecture,
    such as `x86_64` or `aarch64`.
    """
    on_cpu = [name for name in backends if name.endswith(CPU)]
    if not on_cpu:
        return ReduceRange(
            False, f"{', '.join(backends)} does not need it" if backends else "no measured backend needs it"
        )
    units = [unit for flag, unit in WIDE_SUMS.items() if flag in flags]
    if units:
        return ReduceRange(False, f"{units[0]} adds INT8 products in 32 bits")
    if machine.lower().startswith(ARM):
        return ReduceRange(False, "ARM does not saturate sums of INT8 products")
    unit = "AVX2" if "avx2" in flags else machine or "the processor"
    return ReduceRange(True, f"{unit} has no VNNI, and {', '.join(on_cpu)} is measured")
