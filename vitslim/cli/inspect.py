"""`vitslim inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitslim.cli.arguments import FormatOption

if TYPE_CHECKING:
    from vitslim.pipeline.inspect import Inspection


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file, or the folder of a run.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Exit with code 1 when the file breaks a promise; see above.")
    ] = False,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="Compare the codes of each layer with the graph that lies beside the file."),
    ] = False,
    output: FormatOption = "table",
) -> None:
    """Show what an ONNX file holds: layers with bits, sparsity and sizes, and what ONNX Runtime makes of them.

    Everything is read from the stored numbers. An annotation is a promise: its layer exists, the integers keep within
    the bits, weights noted as 2:4 are 2:4. So is a Q/DQ pair around a matrix product: ONNX Runtime fuses it; and every
    scale is positive and finite. Broken promises are listed; a file without annotations and Q/DQ promises nothing.
    """
    from vitslim.cli.console import ConsoleProgress, stdout
    from vitslim.cli.inspect_tables import print_inspection
    from vitslim.errors import GateError
    from vitslim.pipeline.inspect import inspect as inspect_file

    found = inspect_file(file, layers, ConsoleProgress())
    if output == "json":
        typer.echo(json.dumps(_json(found), indent=1))
    else:
        print_inspection(found, stdout())
    if verify and found.broken:
        count = len(found.broken)
        noun, verb = ("promise", "is") if count == 1 else ("promises", "are")
        raise GateError(f"'{found.path}' does not hold what it promises: {count} {noun} {verb} broken",
                        "each is listed with its layer and what was found")  # fmt: skip


def _json(found: Inspection) -> dict[str, Any]:
    from dataclasses import asdict

    facts = asdict(found.facts)
    facts["layers"] = [
        asdict(layer)
        | {
            "pattern": layer.pattern,
            "true_bytes": layer.true_bytes,
            "kernel": found.kernel(layer),
            "exceeds_16_bits": layer.exceeds_16_bits,
        }
        for layer in found.facts.layers
    ]
    return {
        "file": str(found.path),
        "stored_bytes": found.stored_bytes,
        "true_bytes": found.true_bytes,
        **{key: value for key, value in facts.items() if key != "broken"},
        "onnxruntime": {"kernels": dict(found.kernels.counts) if found.kernels else None, "refusal": found.refusal},
        "codes": [asdict(one) for one in found.codes],
        "broken": [asdict(one) for one in found.broken],
    }
