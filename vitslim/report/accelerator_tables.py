"""Tables of simulated accelerators that change results: accuracy, work image by image, and assumed values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vitslim.report.pictures.token_table import TokenTable, picture_table
from vitslim.report.tables.columns import Cell, Column, Group, Source
from vitslim.results import AcceleratorResult, ApproximateAccuracy, Distribution, Estimate, Report
from vitslim.units import format_percent


@dataclass(frozen=True)
class AcceleratorTables:
    """The final model on one accelerator."""

    backend: str
    distributions: tuple[Group, ...]
    layers: tuple[Group, ...]
    sensitivity: tuple[Group, ...]
    """Empty unless the target is mostly assumed."""
    pictures: TokenTable | None
    picture_note: str


def accuracy_groups(report: Report) -> tuple[Group, ...]:
    """Return a row for each stage, accelerator and data set; exact and approximate accuracies never share a column."""
    rows = [
        (stage.name, one.backend, a) for stage in report.stages for one in stage.accelerators for a in one.accuracies
    ]
    if not rows:
        return ()
    texts: tuple[tuple[str, Source, list[str], bool], ...] = (
        ("stage", "", [stage for stage, _, _ in rows], False),
        ("accelerator", "", [backend for _, backend, _ in rows], False),
        ("data set", "", [a.dataset for _, _, a in rows], False),
        ("images", "counted", [f"{a.n:,}" for _, _, a in rows], True),
        ("top-1 without approximations", "measured", [_percent(a.exact_top1) for _, _, a in rows], True),
        ("top-1", "simulated", [_percent(a.top1) for _, _, a in rows], True),
        ("points", "simulated", [_points(a) for _, _, a in rows], True),
        ("agreement", "simulated", [format_percent(a.agreement) for _, _, a in rows], True),
    )
    return (_group(texts),)


def _percent(value: float | None) -> str:
    """Return a percentage; empty for images without labels."""
    return "" if value is None else format_percent(value)


def _points(found: ApproximateAccuracy) -> str:
    if found.top1 is None or found.exact_top1 is None:
        return ""
    return f"{100 * (found.top1 - found.exact_top1):+.1f}"


def _group(texts: Iterable[tuple[str, Source, list[str], bool]]) -> Group:
    columns = (Column(name, source, tuple(map(Cell, cells)), numeric) for name, source, cells, numeric in texts)
    return Group((), "", tuple(columns))


def accelerator_tables(report: Report) -> tuple[AcceleratorTables, ...]:
    """Return the tables of the final model on each accelerator."""
    if not report.stages:
        return ()
    last = report.stages[-1]
    estimates = {one.backend: one for one in last.estimates}
    return tuple(_tables(one, estimates.get(one.backend), number) for number, one in enumerate(last.accelerators))


def _tables(found: AcceleratorResult, estimate: Estimate | None, number: int) -> AcceleratorTables:
    layers: list[tuple[str, Source, list[str], bool]] = [("layer", "", [one.layer for one in found.layers], False)]
    for place, count in enumerate(found.layers[0].counts if found.layers else ()):
        layers.append((count.name, "simulated", [_span(one.counts[place]) for one in found.layers], True))
    return AcceleratorTables(
        backend=found.backend,
        distributions=(_group(_distribution_columns(found)),) if found.distributions else (),
        layers=(_group(layers),) if found.layers else (),
        sensitivity=sensitivity_groups(estimate) if estimate else (),
        pictures=picture_table(found.pictures, f"accelerator-{number}"),
        picture_note=found.picture_note,
    )


def _distribution_columns(found: AcceleratorResult) -> Iterable[tuple[str, Source, list[str], bool]]:
    yield "of each image", "", [one.name for one in found.distributions], False
    for header, key in (("mean", "mean"), ("minimum", "minimum"), ("10 %", "p10"), ("median", "median"),
                        ("90 %", "p90"), ("maximum", "maximum")):  # fmt: skip
        yield header, "simulated", [_number(getattr(one, key)) for one in found.distributions], True


def sensitivity_groups(found: Estimate) -> tuple[Group, ...]:
    """Return latency and energy at both ends of the range of each assumed value; empty without any."""
    rows = found.sensitivity
    if not rows:
        return ()
    return (
        _group((
            ("assumed key", "", [one.key for one in rows], False),
            ("value", "", [one.value for one in rows], True),
            ("range", "", [f"{one.low:g} to {one.high:g}" for one in rows], True),
            ("ms at the low end", "simulated", [_number(one.latency_low_ms) for one in rows], True),
            ("ms at the high end", "simulated", [_number(one.latency_high_ms) for one in rows], True),
            ("mJ at the low end", "simulated", [_number(one.energy_low_mj) for one in rows], True),
            ("mJ at the high end", "simulated", [_number(one.energy_high_mj) for one in rows], True),
        )),
    )  # fmt: skip


def _span(found: Distribution) -> str:
    """Return the mean, and the range over images if they differ."""
    if found.minimum == found.maximum:
        return _number(found.mean)
    return f"{_number(found.mean)} ({_number(found.minimum)} to {_number(found.maximum)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
