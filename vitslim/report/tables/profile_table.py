"""Times of operators as tables: by kind, and the longest ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from vitslim.report.tables.columns import Cell, Column, Group, Setting
from vitslim.results import OperatorProfile, Report
from vitslim.units import format_percent

LONGEST = 25
"""Operators in the table of single operators; `report.json` has all of them."""
KINDS_SHOWN = 4
"""Kinds of operators in a line."""


@dataclass(frozen=True)
class ProfileTables:
    """The operators of one file on one backend."""

    title: str
    kinds: tuple[Group, ...]
    longest: tuple[Group, ...]


def profile_tables(report: Report) -> tuple[ProfileTables, ...]:
    """Return the tables of every profile of a report."""
    return tuple(
        ProfileTables(f"{stage} on {setting_of(one)}", (kind_group(one),), (longest_group(one),))
        for stage, one in _profiles(report)
    )


def profile_lines(report: Report) -> tuple[str, ...]:
    """Return a line for each profile: the kinds of operators that take the most time, with their shares."""
    lines = []
    for stage, one in _profiles(report):
        shares = [f"{kind} {format_percent(share)}" for kind, _, _, share in kind_rows(one)[:KINDS_SHOWN]]
        lines.append(f"{stage} on {setting_of(one)}: {', '.join(shares)}")
    return tuple(lines)


def setting_of(found: OperatorProfile) -> Setting:
    """Return the conditions of a profile."""
    return Setting(found.backend, found.batch, found.threads)


def kind_rows(found: OperatorProfile) -> list[tuple[str, int, float, float]]:
    """Return kind of operator, number, microseconds and share of the sum of all; the longest first."""
    counts = Counter(one.op for one in found.operators)
    times = Counter[str]()
    for one in found.operators:
        times[one.op] += one.median_us  # type: ignore[assignment]  # a counter of floats
    total = sum(times.values()) or 1.0
    return [(kind, counts[kind], us, us / total) for kind, us in times.most_common()]


def kind_group(found: OperatorProfile) -> Group:
    """Return a row for each kind of operator."""
    rows = kind_rows(found)
    columns = (
        Column("kind", "", tuple(Cell(kind) for kind, _, _, _ in rows), numeric=False),
        Column("count", "counted", tuple(Cell(str(count)) for _, count, _, _ in rows)),
        Column("us", "measured", tuple(Cell(f"{us:.4g}") for _, _, us, _ in rows)),
        Column("share", "measured", tuple(Cell(format_percent(share)) for _, _, _, share in rows)),
    )
    return Group((), "measured", columns)


def longest_group(found: OperatorProfile) -> Group:
    """Return a row for each of the longest operators."""
    total = sum(one.median_us for one in found.operators) or 1.0
    rows = found.operators[:LONGEST]
    columns = (
        Column("operator", "", tuple(Cell(one.name) for one in rows), numeric=False),
        Column("kind", "", tuple(Cell(one.op) for one in rows), numeric=False),
        Column("us", "measured", tuple(Cell(f"{one.median_us:.4g}") for one in rows)),
        Column("share", "measured", tuple(Cell(format_percent(one.median_us / total)) for one in rows)),
    )
    return Group((), "measured", columns)


def _profiles(report: Report) -> Iterator[tuple[str, OperatorProfile]]:
    for stage in report.stages:
        for one in stage.profiles:
            yield stage.name, one
