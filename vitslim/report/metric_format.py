"""Metrics of the task as text."""

from __future__ import annotations

from vitslim.tasks import describe_metric
from vitslim.units import format_percent


def format_metric(key: str, value: float) -> str:
    """Format a metric with its unit: `81.3 %`, `0.9987` for a cosine, `31.4 dB`."""
    match describe_metric(key).unit:
        case "percent":
            return format_percent(value)
        case "cosine":
            return f"{value:.4f}"
        case "decibel":
            return f"{value:.1f} dB"
