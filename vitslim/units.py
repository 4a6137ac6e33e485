"""Format numbers with their units, and convert between MACs and FLOPs."""

from __future__ import annotations

import math

FLOPS_PER_MAC = 2
"""A multiply and an add. Papers on vision transformers often give MACs and call them FLOPs."""

FLOAT_BITS = 32
"""Bits of an unquantized operand in BOPs."""

INTEGER_BITS_MAX = 8
"""Widest integer weight or activation; wider ones are floating-point."""

PAIR_LIMIT = 128
"""Largest sum of two INT8 weights of one sign that cannot saturate a signed 16-bit accumulator.

CPUs without VNNI multiply two weights that are adjacent along the reduction by UINT8 activations (at most 255), and add
both results in 16 bits with saturation: 128 x 255 < 2^15."""


def container_bits(bits: int) -> int:
    """Return the bits of the narrowest ONNX type with at least `bits` bits: 4, 8, 16 or 32."""
    return next(width for width in (4, 8, 16, 32) if bits <= width)


def flops(macs: int) -> int:
    """Return the floating-point operations of a number of multiply-accumulates."""
    return FLOPS_PER_MAC * macs


def format_count(value: float) -> str:
    """Format a count with three significant digits and k, M, G or T: `1254000000` gives `1.25 G`."""
    for factor, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{suffix}" if abs(value) < 1000 * factor else f"{value / factor:.0f}{suffix}"
    return f"{value:.0f}"


def format_bytes(value: float) -> str:
    """Format bytes in decimal units: `6300000` gives `6.30 MB`."""
    for factor, suffix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= factor:
            return f"{value / factor:.2f} {suffix}"
    return f"{value:.0f} B"


def format_ms(value: float) -> str:
    """Format milliseconds with three significant digits: `3.10 ms`."""
    return f"{value:.{decimals(value)}f} ms"


def format_percent(fraction: float) -> str:
    """Format a fraction in [0, 1] as a percentage with one decimal: `81.3 %`."""
    return f"{100 * fraction:.1f} %"


def format_ratio(value: float) -> str:
    """Format a ratio for a sentence: `3.1x`, with two decimals below 2: `1.02x`."""
    digits = 2 if abs(value) < 1.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}x"


def format_factor(value: float) -> str:
    """Format a ratio for a column of a table, always with two decimals: `3.10x`."""
    return f"{value:.2f}x" if abs(value) < 99.995 else f"{value:.0f}x"


def format_points(fraction: float) -> str:
    """Format a difference of two fractions in percentage points, signed: `-0.003` gives `-0.3`."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if float(text) == 0 else text


def decimals(value: float) -> int:
    """Return the number of decimals that show three significant digits: 2 for 1.83, 0 for 183."""
    magnitude = math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return min(max(2 - magnitude, 0), 6)


def format_median(median_ms: float, spread_ms: float, digits: int | None = None) -> str:
    """Format a median and its spread with the same number of decimals, without unit: `1.83 ±0.05`."""
    places = decimals(median_ms) if digits is None else digits
    return f"{median_ms:.{places}f} ±{spread_ms:.{places}f}"


def format_duration(seconds: float) -> str:
    """Format a duration: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
