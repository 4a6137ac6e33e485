"""Breakdown of a simulated latency: by kind of operator, by row, and on the roofline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vitslim.report.pictures.figures import Figure
from vitslim.report.pictures.roofline import roofline_plot
from vitslim.report.tables.columns import Cell, Column, Group, Setting, estimate, simulated_settings
from vitslim.results import Estimate, EstimateRow, Report
from vitslim.units import format_percent


@dataclass(frozen=True)
class Breakdown:
    """Latency of one stage on one simulated target by operator."""

    title: str
    groups: tuple[Group, ...]


def breakdowns(report: Report) -> tuple[Breakdown, ...]:
    """Return the dense and the final model on every simulated target: by kind, then by row, highest latency first."""
    return tuple(
        Breakdown(title, (group,))
        for name, setting, found in _estimates(report)
        for title, group in (
            (f"by kind: {name} on {setting}", kind_group(found)),
            (f"by layer: {name} on {setting}", row_group(found)),
        )
    )


def rooflines(report: Report) -> tuple[Figure, ...]:
    """Return a roofline of the dense and of the final model for every simulated target that has one."""
    return tuple(
        Figure(
            f"Roofline: {name}",
            "simulated",
            f"{setting}. Peak {found.roofline.peak_tops:.4g} TOPS ({found.roofline.precision}), DRAM "
            f"{found.roofline.bandwidth_gbps:.4g} GB/s. Each dot is a row of the table below.",
            roofline_plot(found, f"Roofline of {name}, simulated, {setting}"),
        )
        for name, setting, found in _estimates(report)
        if found.roofline
    )


def _estimates(report: Report) -> Iterator[tuple[str, Setting, Estimate]]:
    for setting in simulated_settings(report):
        for stage in dict.fromkeys((0, len(report.stages) - 1)):
            found = estimate(report.stages[stage], setting)
            if found and found.rows:
                yield report.stages[stage].name, setting, found


def latency_of(row: EstimateRow) -> float:
    """Return the microseconds of a row, or its cycles for a target without a clock."""
    return row.latency_us or float(row.cycles or 0)


def kind_rows(found: Estimate) -> tuple[EstimateRow, ...]:
    """Return the sums of the rows of each kind of operator, highest latency first; utilization and bound are unset."""
    kinds = dict.fromkeys(row.op for row in found.rows)
    sums = [_sum(kind, [row for row in found.rows if row.op == kind]) for kind in kinds]
    return tuple(sorted(sums, key=lambda row: -latency_of(row)))


def _sum(kind: str, rows: list[EstimateRow]) -> EstimateRow:
    energies = [row.energy_uj for row in rows if row.energy_uj is not None]
    return EstimateRow(
        name=kind,
        op=kind,
        count=sum(row.count for row in rows),
        macs=sum(row.macs for row in rows),
        cycles=sum(row.cycles for row in rows if row.cycles is not None) or None,
        latency_us=sum(row.latency_us for row in rows),
        utilization=0.0,
        dram_bytes=sum(row.dram_bytes for row in rows),
        energy_uj=sum(energies) if energies else None,
    )


def kind_group(found: Estimate) -> Group:
    """Return latency and energy by kind of operator."""
    rows = kind_rows(found)
    kinds = Column("kind", "", tuple(Cell(row.name) for row in rows), numeric=False)
    return Group((), "simulated", (kinds, *_figures(found, rows)))


def row_group(found: Estimate) -> Group:
    """Return every row with its bound, the source of its constants and its expected error."""
    rows = tuple(sorted(found.rows, key=lambda row: -latency_of(row)))
    return Group(
        (),
        "simulated",
        (
            Column("operator", "", tuple(Cell(row.name) for row in rows), numeric=False),
            Column("kind", "", tuple(Cell(row.op) for row in rows), numeric=False),
            *_figures(found, rows),
            Column("utilization", "simulated", tuple(Cell(format_percent(row.utilization)) for row in rows)),
            Column("bound", "simulated", tuple(Cell(row.bound) for row in rows), numeric=False),
            Column("calibration", "simulated", tuple(Cell(row.calibration) for row in rows), numeric=False),
            Column("expected error", "simulated", tuple(Cell(row.expected_error) for row in rows), numeric=False),
        ),
    )


def _figures(found: Estimate, rows: tuple[EstimateRow, ...]) -> Iterator[Column]:
    """Yield the columns that both breakdowns have; cycles and energy where the target has them."""
    total = sum(map(latency_of, found.rows)) or 1.0
    yield Column("count", "counted", tuple(Cell(str(row.count)) for row in rows))
    yield Column("MACs", "counted", tuple(Cell(f"{row.macs:,}") for row in rows))
    if any(row.cycles is not None for row in rows):
        cells = tuple(Cell("" if row.cycles is None else f"{row.cycles:,}") for row in rows)
        yield Column("cycles", "simulated", cells)
    if any(row.latency_us for row in rows):
        yield Column("us", "simulated", tuple(Cell(f"{row.latency_us:.4g}") for row in rows))
    yield Column("share", "simulated", tuple(Cell(format_percent(latency_of(row) / total)) for row in rows))
    if any(row.energy_uj is not None for row in rows):
        cells = tuple(Cell("" if row.energy_uj is None else f"{row.energy_uj:.4g}") for row in rows)
        yield Column("uJ", "simulated", cells)
