"""The tables of `vitslim inspect`: layers that are alike share a row, so that 150 of them stay readable."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitslim.backends.measured.kernels import INTEGER_KERNELS
from vitslim.cli.console import plain_table
from vitslim.pipeline.inspect import Inspection
from vitslim.report.wording import counted, plain
from vitslim.units import format_bytes, format_percent
from vitslim.workload.facts import Layer

T = TypeVar("T")

WIDE = 100
"""Columns of a terminal that has room for what is not in every table."""
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""A part of a dotted name that is a number: the 3 of `blocks.3.mlp.fc1`, not the 1."""
ITEMS_SHOWN = 4
BROKEN_SHOWN = 40


def print_inspection(found: Inspection, console: Console) -> None:
    """Print everything but single layers that are like others."""
    facts = found.facts
    opsets = ", ".join(f"{'opset' if domain == 'ai.onnx' else domain} {v}" for domain, v in facts.opsets.items())
    written = f", written by {facts.producer}" if facts.producer else ""
    _say(console, f"{found.path}: {format_bytes(found.stored_bytes)}, {opsets}, IR {facts.ir_version}{written}", "bold")
    console.print()
    console.print(_about(found))
    if facts.layers:
        console.print()
        console.print(_layers(found, console.width))
    console.print()
    console.print(_sizes(found))
    if found.codes:
        console.print()
        console.print(_codes(found))
    console.print()
    _promises(found, console)


def alike(items: Iterable[T], name: Callable[[T], str], key: Callable[[T], Hashable]) -> list[tuple[str, list[T]]]:
    """Items whose names differ in numbers alone and whose key is equal, under one name: `blocks.0-11.attn.qkv`."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault((NUMBER.sub("0", name(item)), key(item)), []).append(item)
    return [(_common([name(item) for item in group]), group) for group in groups.values()]


def _common(names: Sequence[str]) -> str:
    numbers = [[int(number) for number in NUMBER.findall(name)] for name in names]
    spans = iter(_ranges(sorted(set(column))) for column in zip(*numbers, strict=True))
    return NUMBER.sub(lambda _: next(spans), names[0])


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2,5` for 0, 1, 2 and 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _about(found: Inspection) -> Table:
    facts = found.facts
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    rows = [("input", _pairs(facts.inputs)), ("output", _pairs(facts.outputs))]
    rows += [(key.removeprefix("vitslim."), _short(value)) for key, value in facts.metadata.items()]
    rows.append(("operators", _pairs(facts.operators)))
    rows.append(("ONNX Runtime", _pairs(found.kernels.counts) if found.kernels else found.refusal))
    cut = sum(1 for layer in facts.layers if layer.exceeds_16_bits)
    if cut:
        rows.append(("processors", f"with VNNI, AMX or ARM's dot products: without, sums of {counted(cut, 'layer')} "
                                   "are cut off where two products exceed 16 bits"))  # fmt: skip
    for title, text in rows:
        grid.add_row(_text(title[:24]), _text(text))
    return grid


def _layers(found: Inspection, width: int) -> Table:
    def key(layer: Layer) -> Hashable:
        facts = (layer.container, layer.weight_bits, layer.activation_bits, layer.granularity, layer.pattern)
        noted = layer.annotation.sparsity if layer.annotation else ""
        return (*facts, noted, found.kernel(layer), layer.type, layer.quantized_by)

    wide = width >= WIDE
    more = ("stored as", "scales") if wide else ()
    view = plain_table("layers, by the numbers that are stored", ("layer",), ("n",))
    for column in ("bits", *more):
        view.add_column(column)
    for column in ("zeros", "true", "stored"):
        view.add_column(column, justify="right")
    view.add_column("ONNX Runtime runs")
    view.columns[0].overflow = "fold"
    for index in range(1, len(view.columns)):
        view.columns[index].no_wrap = True
    for name, group in alike(found.facts.layers, lambda layer: layer.name, key):
        one = group[0]
        distinct = {layer.weight: layer for layer in group}.values()
        cells = [_text(name), Text(str(len(group))), Text(f"W{one.weight_bits}A{one.activation_bits}")]
        cells += [Text(one.container), Text(one.granularity or "-")] if wide else []
        cells += [_zeros(group), Text(format_bytes(sum(layer.true_bytes for layer in distinct)))]
        cells += [Text(format_bytes(sum(layer.stored_bytes for layer in distinct))), _kernel(found, one)]
        view.add_row(*cells)
    return view


def _zeros(layers: Sequence[Layer]) -> Text:
    """The pattern that was found, or the share of zeros; red where another pattern is annotated."""
    one, weights = layers[0], sum(layer.weights for layer in layers)
    noted = one.annotation.sparsity if one.annotation else ""
    if noted.startswith("2:4") and noted not in one.patterns and not one.pattern:
        return Text(f"not {noted}", "red")
    return Text(one.pattern or format_percent(sum(layer.zeros for layer in layers) / max(weights, 1)))


def _kernel(found: Inspection, layer: Layer) -> Text:
    kernel = found.kernel(layer) or "-"
    fails = layer.quantized_by == "Q/DQ" and kernel not in INTEGER_KERNELS and kernel != "-"
    return Text(
        f"{kernel}, in float" if fails else kernel, "" if not fails else "yellow" if "Conv" in kernel else "red"
    )


def _sizes(found: Inspection) -> Table:
    """True and stored bytes of each part of the file."""
    facts, layers = found.facts, found.distinct_layers
    view = plain_table("size", ("",), ("true", "stored"))
    stored = sum(layer.stored_bytes for layer in layers)
    rest = found.stored_bytes - stored - facts.scale_bytes - facts.other_bytes
    parts: list[tuple[str, float | None, float]] = [
        ("weights of layers", sum(layer.true_bytes for layer in layers), stored),
        ("their scales and zero points", facts.scale_bytes, facts.scale_bytes),
        ("other constants", facts.other_bytes, facts.other_bytes),
        ("graph, names and notes", None, rest),
        ("whole file", found.true_bytes, found.stored_bytes),
    ]
    for name, true, held in parts:
        view.add_row(name, "-" if true is None else format_bytes(true), format_bytes(held))
    return view


def _codes(found: Inspection) -> Table:
    view = plain_table("codes that differ from the graph's, on identical inputs", ("layer",), ("n", "input", "weight"))
    for name, group in alike(found.codes, lambda one: one.layer, lambda one: (one.inputs, one.weights)):
        shares = (group[0].inputs, group[0].weights)
        view.add_row(_text(name), str(len(group)), *("-" if s is None else f"{s:.3%}" if s else "0 %" for s in shares))
    return view


def _promises(found: Inspection, console: Console) -> None:
    facts = found.facts
    fused = sum(1 for layer in facts.layers if layer.quantized_by == "Q/DQ" and "Conv" not in layer.type)
    noted = counted(len(facts.annotations) or sum(1 for one in facts.layers if one.annotation), "annotated layer")
    promised = f"{noted}, {counted(fused + len(facts.activation_products), 'product')} between Q/DQ"
    if not found.broken:
        nothing = noted.startswith("0 ") and not fused and not facts.activation_products
        console.print("it promises nothing" if nothing else f"every promise holds: {promised}")
        return
    grid = plain_table(f"{counted(len(found.broken), 'broken promise')} ({promised})", ("layer", "promise", "found"))
    for column in grid.columns:
        column.overflow = "fold"
    rows = alike(found.broken, lambda one: one.layer, lambda one: (one.promise, one.found))
    for name, group in rows[:BROKEN_SHOWN]:
        grid.add_row(Text(plain(name) or "-", "red"), _text(group[0].promise), _text(group[0].found))
    console.print(grid)
    if len(rows) > BROKEN_SHOWN:
        console.print(f"and {len(rows) - BROKEN_SHOWN} more: --format json lists all")


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > ITEMS_SHOWN:
        return f"{', '.join(str(item) for item in value[:ITEMS_SHOWN])}, ... ({len(value)} in all)"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


def _pairs(values: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _text(text: str) -> Text:
    """Names come from files: no control characters, no markup."""
    return Text(plain(text))


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(Text(plain(line), style), soft_wrap=not console.is_terminal)
