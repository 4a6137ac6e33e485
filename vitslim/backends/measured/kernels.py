"""Kernels that ONNX Runtime chooses for the operators of a file, read from its optimized graph."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from vitslim.workload.session import open_session

INTEGER_KERNELS = frozenset({
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QGemm",
    "QLinearConv", "QLinearMatMul",
})  # fmt: skip
"""Matmuls and convolutions that read integer weights as they are stored."""
RENAMED = re.compile(r"(_token_\d+|/MatMulAddFusion)$")
"""Suffix that ONNX Runtime appends to repeated names and to matmuls fused with an addition."""


@dataclass(frozen=True)
class Kernels:
    """The optimized graph of a file."""

    by_node: Mapping[str, str]
    """Name of a node in the file to the operator that ONNX Runtime runs under that name, without its domain."""
    counts: Mapping[str, int]
    """Operator to count, the most frequent first."""


def read_kernels(model: Path | bytes, name: str) -> Kernels:
    """Return the kernels of a file or of a serialized model, called `name` in errors, with all optimizations.

    Every node needs a unique name: a fused kernel keeps the name of its matmul. Raises InputError for a model that
    ONNX Runtime rejects, BackendUnavailableError without ONNX Runtime.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, name, threads=1, optimized=path)
        nodes = onnx.load(path, load_external_data=False).graph.node
    counts = Counter(node.op_type for node in nodes)
    return Kernels({RENAMED.sub("", node.name): node.op_type for node in nodes}, dict(counts.most_common()))
