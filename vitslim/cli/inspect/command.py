"""`vitslim inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitslim.cli.arguments import FormatOption

if TYPE_CHECKING:
    from vitslim.pipeline.inspect.inspection import Inspection


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file, or the folder of a run.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Exit with code 1 when the file violates one of its claims.")
    ] = False,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers", help="Compare the integers of each layer with those of the graph saved in the same folder."
        ),
    ] = False,
    output: FormatOption = "table",
) -> None:
    """Show the layers of an ONNX file and check its claims.

    Lists the bits, sparsity and size of each layer, read from the stored weights, and the kernel that ONNX Runtime
    runs. The claims of the file are: each annotated layer exists, its integers fit into the annotated bits, its weights
    follow the annotated sparsity pattern; ONNX Runtime fuses each matmul between Q/DQ into an integer kernel; every
    scale is positive and finite. Violations are listed.
    """
    from vitslim.cli.console import stdout
    from vitslim.cli.inspect.tables import print_inspection
    from vitslim.cli.progress.console_progress import ConsoleProgress
    from vitslim.errors import GateError
    from vitslim.pipeline.inspect.inspection import inspect as inspect_file

    found = inspect_file(file, layers, ConsoleProgress())
    if output == "json":
        typer.echo(json.dumps(_json(found), indent=1))
    else:
        print_inspection(found, stdout())
    if verify and found.violations:
        count = len(found.violations)
        raise GateError(f"'{found.path}' violates {count} of its claims", "stdout lists each one with its layer")


def _json(found: Inspection) -> dict[str, Any]:
    from dataclasses import asdict

    contents = asdict(found.contents)
    contents["layers"] = [
        asdict(layer)
        | {
            "pattern": layer.pattern,
            "device_bytes": layer.device_bytes,
            "kernel": found.kernel(layer),
            "may_saturate_int16": layer.may_saturate_int16,
        }
        for layer in found.contents.layers
    ]
    return {
        "file": str(found.path),
        "stored_bytes": found.stored_bytes,
        "device_bytes": found.device_bytes,
        **{key: value for key, value in contents.items() if key != "violations"},
        "onnxruntime": {"kernels": dict(found.kernels.counts) if found.kernels else None, "error": found.kernels_error},
        "differences": [asdict(one) for one in found.differences],
        "violations": [asdict(one) for one in found.violations],
    }
