"""Tables of one file besides its latency: times of operators, and kernels of layers with 2:4 weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from vitslim.pipeline.bench.files import BenchRow
    from vitslim.report.tables.columns import Group


def file_tables(row: BenchRow) -> Iterator[Table]:
    """Yield the kinds of operators and the longest operators of each profile, then the layers with 2:4 weights."""
    from vitslim.cli.console import plain_table
    from vitslim.report.tables.profile_table import kind_group, longest_group, setting_of
    from vitslim.report.tables.two_four_table import two_four_group, two_four_lines

    for one in row.profiles:
        yield _table(f"{row.file} on {setting_of(one)}, profiled", kind_group(one))
        yield _table(None, longest_group(one))
    if group := two_four_group(row.two_four):
        yield _table(row.file, group)
    if row.two_four:
        notes = plain_table(f"{row.file}, kernels of 2:4 weights", ("",))
        for line in two_four_lines(row.two_four):
            notes.add_row(line)
        yield notes


def _table(title: str | None, group: Group) -> Table:
    from vitslim.cli.console import plain_table

    texts = tuple(column.header for column in group.columns if not column.numeric)
    table = plain_table(title, texts, tuple(column.header for column in group.columns if column.numeric))
    for cells in zip(*(column.cells for column in group.columns), strict=True):
        table.add_row(*(cell.text for cell in cells))
    return table
