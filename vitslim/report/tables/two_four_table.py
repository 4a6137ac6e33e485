"""Kernels of layers with 2:4 weights, layer by layer and backend by backend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from vitslim.report.tables.columns import EMPTY, Cell, Column, Group
from vitslim.results import Report, TwoFourLayer, TwoFourUse


def two_four_group(uses: Iterable[TwoFourUse]) -> Group | None:
    """Return a row for each layer and a column for each backend that tells; None if none tells."""
    telling = [use for use in uses if use.layers]
    if not telling:
        return None
    names = dict.fromkeys(layer.layer for use in telling for layer in use.layers)
    columns = [Column("layer with 2:4 weights", "", tuple(map(Cell, names)), numeric=False)]
    for use in telling:
        by_name = {layer.layer: Cell(_words(layer)) for layer in use.layers}
        cells = tuple(by_name.get(name, EMPTY) for name in names)
        columns.append(Column(use.backend, "measured", cells, numeric=False))
    return Group((), "", tuple(columns))


def two_four_lines(uses: Iterable[TwoFourUse]) -> tuple[str, ...]:
    """Return a line for each backend: the number of layers of each status, and the note."""
    return tuple(f"{use.backend}: {'; '.join(filter(None, (_counts(use), use.note)))}" for use in uses)


def report_uses(report: Report) -> tuple[TwoFourUse, ...]:
    """Return the use of 2:4 weights by the final model; empty for a report without stages."""
    return report.stages[-1].two_four if report.stages else ()


def _words(layer: TwoFourLayer) -> str:
    return f"{layer.status}: {layer.reason}" if layer.reason else layer.status


def _counts(use: TwoFourUse) -> str:
    counts = Counter(layer.status for layer in use.layers)
    return ", ".join(f"{count} {status}" for status, count in counts.most_common())
