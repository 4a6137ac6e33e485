"""Tables of one simulated estimate: latency by class of operator, rows, totals and settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from vitslim.results import Estimate


def estimate_tables(file: str, found: Estimate) -> Iterator[Table]:
    """Yield tables of operator classes, of rows with latency, utilization, bound and calibration, and of totals."""
    from vitslim.cli.console import plain_table
    from vitslim.report.pictures.breakdowns import kind_rows, latency_of

    title = f"{file} on {found.backend}, batch {found.batch}, simulated"
    total = sum(map(latency_of, found.rows)) or 1.0
    classes = plain_table(title, ("class",), ("count", "latency", "share", "energy"))
    for row in kind_rows(found):
        energy = "" if row.energy_uj is None else f"{row.energy_uj / 1e3:.3g} mJ"
        classes.add_row(
            row.name, str(row.count), f"{row.latency_us:.4g} us", f"{100 * latency_of(row) / total:.1f} %", energy
        )
    yield classes
    rows = plain_table(
        None, ("operator",), ("count", "latency", "utilization", "bound", "expected error", "calibration")
    )
    for row in sorted(found.rows, key=latency_of, reverse=True):
        rows.add_row(row.name, str(row.count), f"{row.latency_us:.4g} us", f"{100 * row.utilization:.1f} %", row.bound,
                     row.expected_error, row.calibration)  # fmt: skip
    yield rows
    if found.sensitivity:
        yield _sensitivity(found)
    sums = plain_table(None, ("",), ("",))
    for name, value in _sums(found):
        sums.add_row(name, value)
    yield sums


def _sensitivity(found: Estimate) -> Table:
    """Return latency and energy at both ends of the range of each assumed value."""
    from vitslim.cli.console import plain_table
    from vitslim.report.accelerator_tables import sensitivity_groups

    (group,) = sensitivity_groups(found)
    headers = [column.header for column in group.columns]
    table = plain_table("sensitivity to assumed values", tuple(headers[:1]), tuple(headers[1:]))
    for cells in zip(*(column.cells for column in group.columns), strict=True):
        table.add_row(*(cell.text for cell in cells))
    return table


def _sums(found: Estimate) -> Iterator[tuple[str, str]]:
    from vitslim.report.wording import estimate_sums

    for line in estimate_sums(found):
        name, _, value = line.partition(": ")
        yield (name, value) if value else ("launches", name)
    yield from found.settings.items()
    yield "assumed", ", ".join(found.assumed) or "nothing"
    yield "expected error", found.expected_error
