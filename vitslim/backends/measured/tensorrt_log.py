"""Read from TensorRT's log which layers run on sparse kernels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from vitslim.errors import InputError
from vitslim.results import TwoFourLayer, TwoFourUse

BYTES_MAX = 1_000_000_000
NAME = "tensorrt"
_ELIGIBLE = re.compile(r"\(Sparsity\) (?:Layers eligible for sparse math|Found \d+ layer\(s\) eligible[^:]*):(.*)")
_SELECTED = re.compile(r"\(Sparsity\) (?:TRT inference plan picked sparse[^:]*|Chose \d+ layer\(s\)[^:]*):(.*)")
_HINT = "build the engine with `trtexec --onnx=model.onnx --sparsity=enable --verbose`, and give its output"


def read_tensorrt_log(path: Path, layers: Mapping[str, str]) -> TwoFourUse:
    """Return the use of 2:4 weights in the engine whose build a log describes.

    layers: name of the ONNX node of each layer with 2:4 weights to the name of the layer. Raises InputError for a file
    that cannot be read, or has no lines about sparsity.
    """
    try:
        if path.stat().st_size > BYTES_MAX:
            raise InputError(f"'{path}' is larger than {BYTES_MAX // 10**9} GB", _HINT)
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}", "give the file with TensorRT's log") from error
    eligible, selected = _listed(_ELIGIBLE, text), _listed(_SELECTED, text)
    if eligible is None or selected is None:
        raise InputError(f"'{path}' does not tell which layers are sparse", _HINT)
    found = tuple(_layer(name, node, eligible, selected) for node, name in layers.items())
    return TwoFourUse(backend=NAME, layers=found, note=f"from {path.name}")


def _listed(pattern: re.Pattern[str], text: str) -> set[str] | None:
    """Return the nodes that the last line of a kind lists, those of fused layers each; None without such a line."""
    lines = pattern.findall(text)
    if not lines:
        return None
    return {part.strip() for layer in lines[-1].split(", ") for part in layer.split(" + ")}


def _layer(name: str, node: str, eligible: set[str], selected: set[str]) -> TwoFourLayer:
    if node in selected:
        return TwoFourLayer(layer=name, status="selected")
    if node in eligible:
        return TwoFourLayer(layer=name, status="eligible, not selected")
    return TwoFourLayer(layer=name, status="not eligible", reason="TensorRT does not list it as eligible")
