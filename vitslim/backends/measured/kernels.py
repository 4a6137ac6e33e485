"""Which kernels ONNX Runtime makes of the operators of a file, read from the graph that it really runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from vitslim.backends.measured.onnxruntime import open_session

INTEGER_KERNELS = frozenset({
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QGemm",
    "QLinearConv", "QLinearMatMul",
})  # fmt: skip
"""Products that read integer weights as they are stored."""
RENAMED = re.compile(r"(_token_\d+|/MatMulAddFusion)$")
"""What ONNX Runtime appends to names that its passes have used before, and to products that took up an addition."""


@dataclass(frozen=True)
class Kernels:
    """The optimized graph of a file."""

    by_node: Mapping[str, str]
    """Name of a node of the file to the operator that ONNX Runtime runs under that name, without its domain."""
    counts: Mapping[str, int]
    """Operator to count, the commonest first."""


def read_kernels(model: Path | bytes, shown: str) -> Kernels:
    """Kernels of a file, or of a serialized model that errors call `shown`, at the highest level of optimization.

    Every node needs a name of its own: a fused kernel keeps that of its product. Raises InputError for a model that
    ONNX Runtime does not take, BackendUnavailableError without ONNX Runtime.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, shown, threads=1, optimized=path)
        nodes = onnx.load(path, load_external_data=False).graph.node
    counts = Counter(node.op_type for node in nodes)
    return Kernels({RENAMED.sub("", node.name): node.op_type for node in nodes}, dict(counts.most_common()))
