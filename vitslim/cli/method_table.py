"""Tables of `vitslim recipes describe`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.text import Text

from vitslim.cli.console import plain_table, stdout
from vitslim.recipe import KeyInfo, MethodInfo

MEANING_WIDTH_MIN = 36
MAPPING = "a mapping"
"""Allowed value of a key whose own keys follow."""


def print_methods(methods: Sequence[MethodInfo]) -> None:
    """Print one row for each method."""
    table = plain_table(None, ("kind", "method", "description"))
    for info in methods:
        default = " (default)" if info.is_default else ""
        table.add_row(info.kind, info.method + default, Text(info.description))
    stdout().print(table)


def print_keys(methods: Sequence[MethodInfo]) -> None:
    """Print the keys of each method; keys inside a mapping are indented below it."""
    console = stdout()
    for position, info in enumerate(methods):
        console.print(Text("\n" if position else "").append(f"{info.kind}: {info.method}", style="bold"))
        console.print(Text(info.description), end="\n\n")
        console.print(Text(f"  {info.example}"), end="\n\n")
        table = plain_table(None, ("key", "default", "description"))
        table.columns[0].no_wrap = table.columns[1].no_wrap = True
        table.columns[2].min_width = MEANING_WIDTH_MIN
        for key in info.keys:
            table.add_row(_indented(key), _default(key), _meaning(key))
        console.print(table)
    if any(key.is_assumed for info in methods for key in info.keys):
        console.print(Text("\n* assumed: no source confirms this default"))


def _indented(key: KeyInfo) -> Text:
    parents, _, name = key.key.rpartition(".")
    depth = parents.count(".") + 1 if parents else 0
    return Text("  " * depth + name)


def _default(key: KeyInfo) -> Text:
    if key.is_required:
        return Text("required")
    if key.is_mapping and isinstance(key.default, dict):
        return Text("")  # its keys show their own defaults
    value = key.default if isinstance(key.default, str) else json.dumps(key.default)
    return Text(value + ("*" if key.is_assumed else ""))


def _meaning(key: KeyInfo) -> Text:
    """Join the description and the allowed values, each on a line of its own."""
    lines = [key.description] if key.description else []
    if key.allowed != MAPPING:
        lines.append(f"Allowed: {key.allowed}")
    return Text("\n".join(lines))
