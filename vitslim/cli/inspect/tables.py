"""The tables of `vitslim inspect`. Equal layers of different blocks share a row."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitslim.backends.measured.kernels import INTEGER_KERNELS
from vitslim.cli.console import plain_table
from vitslim.pipeline.inspect.inspection import Inspection
from vitslim.report.wording import counted, plain
from vitslim.units import format_bytes, format_percent
from vitslim.workload.contents.file_contents import Layer

T = TypeVar("T")

WIDE = 100
"""Width in characters from which the table of layers has all columns."""
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""A part of a dotted name that is a number: the 3 of `blocks.3.mlp.fc1`, not the 1."""
ITEMS_SHOWN = 4
TEXT_SHOWN = 200
VIOLATIONS_SHOWN = 40


def print_inspection(found: Inspection, console: Console) -> None:
    """Print metadata, layers, sizes, differences from the graph, and violations."""
    facts = found.contents
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
    if found.differences:
        console.print()
        console.print(_differences(found))
    console.print()
    _violations(found, console)


def grouped(items: Iterable[T], name: Callable[[T], str], key: Callable[[T], Hashable]) -> list[tuple[str, list[T]]]:
    """Group items with equal keys whose names differ only in numbers; a group is called `blocks.0-11.attn.qkv`."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault((NUMBER.sub("0", name(item)), key(item)), []).append(item)
    return [(_common([name(item) for item in group]), group) for group in groups.values()]


def _common(names: Sequence[str]) -> str:
    numbers = [[int(number) for number in NUMBER.findall(name)] for name in names]
    spans = iter(_ranges(sorted(set(column))) for column in zip(*numbers, strict=True))
    return NUMBER.sub(lambda _: next(spans), names[0])


def _ranges(numbers: Sequence[int]) -> str:
    """Return `0-2,5` for 0, 1, 2 and 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _about(found: Inspection) -> Table:
    facts = found.contents
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    rows = [("input", _pairs(facts.inputs)), ("output", _pairs(facts.outputs))]
    rows += [(key.removeprefix("vitslim."), _short(value)) for key, value in facts.metadata.items() if " " not in key]
    nested = [key.split(maxsplit=1) for key in facts.metadata if " " in key.strip()]
    rows += [(group, _short([key for first, key in nested if first == group])) for group in dict(nested)]
    rows.append(("operators", _pairs(facts.operators)))
    rows.append(("ONNX Runtime", _pairs(found.kernels.counts) if found.kernels else found.kernels_error))
    saturating = sum(1 for layer in facts.layers if layer.may_saturate_int16)
    if saturating:
        rows.append(("processors", f"{counted(saturating, 'layer')} may saturate 16-bit sums on CPUs without VNNI, AMX "
                                   "or ARM dot-product instructions; reduce_range: true avoids it"))  # fmt: skip
    for title, text in rows:
        grid.add_row(_text(title[:24]), _text(text))
    return grid


def _layers(found: Inspection, width: int) -> Table:
    def key(layer: Layer) -> Hashable:
        facts = (layer.container, layer.weight_bits, layer.activation_bits, layer.granularity, layer.pattern)
        annotated = layer.annotation.sparsity if layer.annotation else ""
        return (*facts, annotated, found.kernel(layer), layer.type, layer.quantized_by)

    wide = width >= WIDE
    more = ("stored as", "scales") if wide else ()
    view = plain_table("layers, from the stored weights; bytes on the device and in the file", ("layer",), ("n",))
    for column in ("bits", *more):
        view.add_column(column)
    for column in ("zeros", "device", "file"):
        view.add_column(column, justify="right")
    view.add_column("kernel")
    view.columns[0].overflow = "fold"
    for index in range(1, len(view.columns)):
        view.columns[index].no_wrap = True
    for name, group in grouped(found.contents.layers, lambda layer: layer.name, key):
        one = group[0]
        distinct = {layer.weight: layer for layer in group}.values()
        cells = [_text(name), Text(str(len(group))), Text(f"W{one.weight_bits}A{one.activation_bits}")]
        cells += [Text(one.container), Text(one.granularity or "-")] if wide else []
        cells += [_sparsity(group), Text(format_bytes(sum(layer.device_bytes for layer in distinct)))]
        cells += [Text(format_bytes(sum(layer.stored_bytes for layer in distinct))), _kernel(found, one)]
        view.add_row(*cells)
    return view


def _sparsity(layers: Sequence[Layer]) -> Text:
    """Return the pattern of the weights, or the fraction of zeros; red where the annotated pattern is violated."""
    one, weights = layers[0], sum(layer.weights for layer in layers)
    annotated = one.annotation.sparsity if one.annotation else ""
    if annotated.startswith("2:4") and annotated not in one.patterns and not one.pattern:
        return Text(f"not {annotated}", "red")
    return Text(one.pattern or format_percent(sum(layer.zeros for layer in layers) / max(weights, 1)))


def _kernel(found: Inspection, layer: Layer) -> Text:
    kernel = found.kernel(layer) or "-"
    if kernel == "-" or kernel in INTEGER_KERNELS or layer.quantized_by != "Q/DQ":
        return Text(kernel)
    return Text(f"{kernel} (float)", "yellow" if "Conv" in kernel else "red")


def _sizes(found: Inspection) -> Table:
    """Return the table of the bytes of each part of the file."""
    facts, layers = found.contents, found.distinct_layers
    view = plain_table("size", ("",), ("device", "file"))
    stored = sum(layer.stored_bytes for layer in layers)
    rest = found.stored_bytes - stored - facts.scale_bytes - facts.other_bytes
    parts: list[tuple[str, float | None, float]] = [
        ("weights", sum(layer.device_bytes for layer in layers), stored),
        ("scales and zero points", facts.scale_bytes, facts.scale_bytes),
        ("other constants", facts.other_bytes, facts.other_bytes),
        ("graph and metadata", None, rest),
        ("total", found.device_bytes, found.stored_bytes),
    ]
    for name, on_device, in_file in parts:
        view.add_row(name, "-" if on_device is None else format_bytes(on_device), format_bytes(in_file))
    return view


def _differences(found: Inspection) -> Table:
    title = "integers that differ from the graph, on identical inputs"
    view = plain_table(title, ("layer",), ("n", "activation", "weight"))
    rows = grouped(found.differences, lambda one: one.layer, lambda one: (one.activations, one.weights))
    for name, group in rows:
        fractions = (group[0].activations, group[0].weights)
        cells = ("-" if value is None else f"{value:.3%}" if value else "0 %" for value in fractions)
        view.add_row(_text(name), str(len(group)), *cells)
    return view


def _violations(found: Inspection, console: Console) -> None:
    facts = found.contents
    quantized = sum(1 for layer in facts.layers if layer.quantized_by == "Q/DQ" and "Conv" not in layer.type)
    annotated = len(facts.annotations) or sum(1 for one in facts.layers if one.annotation)
    matmuls = quantized + len(facts.activation_matmuls)
    claims = f"{counted(annotated, 'annotated layer')}, {counted(matmuls, 'matmul')} between Q/DQ"
    if not found.violations:
        console.print(f"no violations ({claims})" if annotated or matmuls else "the file makes no claims to check")
        return
    grid = plain_table(f"{counted(len(found.violations), 'violation')} ({claims})", ("layer", "claim", "found"))
    for column in grid.columns:
        column.overflow = "fold"
    rows = grouped(found.violations, lambda one: one.layer, lambda one: (one.claim, one.found))
    for name, group in rows[:VIOLATIONS_SHOWN]:
        grid.add_row(Text(plain(name) or "-", "red"), _text(group[0].claim), _text(group[0].found))
    console.print(grid)
    if len(rows) > VIOLATIONS_SHOWN:
        console.print(f"and {len(rows) - VIOLATIONS_SHOWN} more; --format json lists all")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{key}: {one}" for key, one in value.items()]
    if isinstance(value, list) and len(value) > ITEMS_SHOWN:
        return f"{', '.join(str(item) for item in value[:ITEMS_SHOWN])}, ... ({len(value)} in all)"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]}... ({len(text)} characters)"


def _pairs(values: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _text(text: str) -> Text:
    """Return text without control characters and markup, which names from files may contain."""
    return Text(plain(text))


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(Text(plain(line), style), soft_wrap=not console.is_terminal)
