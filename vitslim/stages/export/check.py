"""Compare an exported file with its graph.

The outputs of a float file must be equal within a tolerance. Those of a quantized file cannot be: a value between two
integers may be rounded to either, and the difference grows from layer to layer, to an SQNR of about 30 dB. For such a
file the stored integers must be exactly those of the graph, and the predictions must agree: the classes, or the
direction of features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitslim.errors import InputError, StageError
from vitslim.graph.edits.fake_quant import integer_weights, layer_nodes, quantized_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.outputs import joined
from vitslim.stages.export.annotate import keeps_mask, masked_layers
from vitslim.stages.export.stored_weight import StoredWeight, stored_weight
from vitslim.training.evaluate import shown_below, sqnr_db
from vitslim.training.tasks import TaskFunctions
from vitslim.training.tasks.classification import Classification
from vitslim.workload.session import OnnxModel

FLOAT_TOLERANCE = 1e-4
"""Largest difference of the outputs of a float file, as a fraction of the largest."""

AGREEMENT_AT_LEAST = 0.95
"""Smallest agreement of file and graph. A few images may show less by chance."""


@dataclass(frozen=True)
class Parity:
    """The outputs of the file, compared with those of the graph on the same images."""

    images: int
    max_abs_error: float
    agreement: float
    """Fraction of images of which the predictions are the same, by the task."""
    agreement_but_ties: float
    """The same, where predictions that are nearly tied in the graph count as equal."""
    sqnr_db: float
    relative_error: float
    """Largest difference, as a fraction of the largest output."""
    agreement_name: str = "agreement"
    """Key of the agreement of the task among the metrics."""

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the report by name."""
        values = {
            "parity_images": float(self.images),
            "parity_max_abs_error": self.max_abs_error,
            f"parity_{self.agreement_name}": self.agreement,
        }
        return values | ({"parity_sqnr_db": self.sqnr_db} if math.isfinite(self.sqnr_db) else {})


class OnnxFile:
    """An exported file in ONNX Runtime. Call it with images (n, C, H, W); it gives outputs (n, k), see `joined`."""

    def __init__(self, path: Path, exact: bool = True) -> None:
        """Raises StageError when ONNX Runtime rejects the file.

        Processors without VNNI add pairs of INT8 products in 16 bits, where sums above 32767 saturate; with `exact`
        nothing is fused and matmuls run in float, so that only the file is tested.
        """
        try:
            self._model = OnnxModel(path, fuse=not exact)
        except InputError as error:
            raise StageError(f"the exported file is invalid: {error.message}") from error

    def __call__(self, images: Tensor) -> Tensor:
        """Return the outputs of images."""
        return joined([torch.from_numpy(one) for one in self._model.run(images.numpy())])


def compare_outputs(expected: Tensor, found: Tensor, task: TaskFunctions | None = None) -> Parity:
    """Compare the outputs of the file (n, k) with those of the graph. task: default classification."""
    task = task or Classification()
    error = (expected - found).abs().max().item()
    largest = expected.abs().max().item()
    return Parity(
        images=len(expected),
        max_abs_error=error,
        agreement=task.agrees(expected, found).float().mean().item(),
        agreement_but_ties=task.nearly_agrees(expected, found).float().mean().item(),
        sqnr_db=sqnr_db(expected, found),
        relative_error=error / largest if largest > 0 else error,
        agreement_name=task.agreement,
    )


def check_parity(parity: Parity, exact: bool) -> None:
    """Raise StageError if the outputs of the file differ from those of the graph.

    exact: compare the outputs; otherwise compare the predictions, for quantized and half-precision files.
    """
    hint = "this is an error of the export or of ONNX Runtime on this machine: please report it with the model's name"
    if not math.isfinite(parity.max_abs_error):
        raise StageError("the outputs of the exported file are not finite", hint)
    if not exact and shown_below(parity.agreement_but_ties, AGREEMENT_AT_LEAST, parity.images):
        raise StageError(
            f"the exported file agrees with the graph on only {100 * parity.agreement_but_ties:.1f} % of "
            f"{parity.images} images",
            hint,
        )
    if exact and parity.relative_error > FLOAT_TOLERANCE:
        raise StageError(
            f"outputs of the exported file differ from the graph's by {parity.max_abs_error:.2g} "
            f"({parity.relative_error:.1g} of the largest)",
            hint,
        )


def check_stored_weights(path: Path, graph: ModelGraph) -> None:
    """Raise StageError unless the file stores exactly the integers of every quantized weight and keeps all masks."""
    stored = [weight for node in ir.load(path).graph if (weight := stored_weight(node)) is not None]
    layers = layer_nodes(graph.module)
    for name in sorted(quantized_layers(graph.module)):
        if not _is_stored(stored, name, integer_weights(graph.module, layers[name][0].args[1]).numpy()):
            raise StageError(f"the integers stored for '{name}' are not those of its fake quantizer")
    masked = masked_layers(graph)
    for weight in stored:
        if weight.name in masked and not keeps_mask(weight, graph):
            pattern = masked[weight.name]
            raise StageError(
                f"'{weight.name}' was masked to {pattern}, but is not {pattern} in the exported file",
                "prune structurally before weights are masked, not afterwards",
            )


def _is_stored(stored: list[StoredWeight], name: str, integers: NDArray[Any]) -> bool:
    """Whether a file stores these integers under this name, or under any name if equal tensors were merged."""
    named = [weight for weight in stored if weight.name == name] or stored
    return any(
        w.scales is not None
        and w.values.size == integers.size
        and np.array_equal(w.values, integers.reshape(w.values.shape))
        for w in named
    )
