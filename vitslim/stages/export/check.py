"""Whether an exported file computes what the graph computes, judged on the file itself.

A float file must agree number by number. A quantized one cannot: a value that lies on the edge between two codes falls
to either side, and the difference cascades to about 30 dB (specs, ONNX lowering, section 6). There the stored integers
must be exactly those of the graph, and the predicted classes must agree.
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
from vitslim.stages.export.annotate import StoredWeight, keeps_mask, masked_layers, stored_weight
from vitslim.training.evaluate import agreement, shown_below, sqnr_db
from vitslim.workload.session import OnnxModel

FLOAT_TOLERANCE = 1e-4
"""Largest difference of float logits, as a fraction of the largest logit."""

NEAR_TIE = 0.1
"""Two classes whose logits differ by less than this fraction of the logits' root mean square may change places."""

AGREEMENT_AT_LEAST = 0.95
"""Of many images; of a few as many as chance would leave of such a share."""


@dataclass(frozen=True)
class Parity:
    """The file against the graph on the same images."""

    images: int
    max_abs_error: float
    agreement: float
    """Fraction of images whose predicted class is the same."""
    agreement_but_ties: float
    """The same, with images counted as equal whose two classes are nearly tied in the graph."""
    sqnr_db: float
    relative_error: float
    """Largest difference as a fraction of the largest logit."""

    def metrics(self) -> dict[str, float]:
        """By name, as the report shows them."""
        values = {
            "parity_images": float(self.images),
            "parity_max_abs_error": self.max_abs_error,
            "parity_agreement": self.agreement,
        }
        return values | ({"parity_sqnr_db": self.sqnr_db} if math.isfinite(self.sqnr_db) else {})


class OnnxFile:
    """An exported file in ONNX Runtime. Call it with images (n, C, H, W); it gives logits (n, classes)."""

    def __init__(self, path: Path, exact: bool = True) -> None:
        """Raises StageError when ONNX Runtime rejects the file.

        Processors without VNNI add pairs of INT8 products in 16 bits, where sums above 32767 are cut off; with `exact`
        nothing is fused and products are in float, so that the file alone is judged.
        """
        try:
            self._model = OnnxModel(path, fuse=not exact)
        except InputError as error:
            raise StageError(f"the exported file is invalid: {error.message}") from error

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of images."""
        return torch.from_numpy(self._model(images.numpy()))


def compare_logits(expected: Tensor, found: Tensor) -> Parity:
    """Figures of logits of the file (n, classes) against those of the graph."""
    error = (expected - found).abs().max().item()
    largest = expected.abs().max().item()
    before, after = expected.argmax(dim=1, keepdim=True), found.argmax(dim=1, keepdim=True)
    gap = (expected.gather(1, before) - expected.gather(1, after)).squeeze(1)
    tolerance = NEAR_TIE * expected.square().mean(dim=1).sqrt()
    return Parity(
        images=len(expected),
        max_abs_error=error,
        agreement=agreement(expected, found),
        agreement_but_ties=(gap <= tolerance).float().mean().item(),
        sqnr_db=sqnr_db(expected, found),
        relative_error=error / largest if largest > 0 else error,
    )


def check_parity(parity: Parity, exact: bool) -> None:
    """Raise StageError when the file does not compute what the graph computes.

    exact: number by number; else classes are compared, as codes and half precision round in their own way.
    """
    hint = "this is a fault of the export or of ONNX Runtime on this machine: please report it with the model's name"
    if not math.isfinite(parity.max_abs_error):
        raise StageError("the exported file gives logits that are not finite", hint)
    if not exact and shown_below(parity.agreement_but_ties, AGREEMENT_AT_LEAST, parity.images):
        raise StageError(
            f"the exported file agrees with the graph on only {100 * parity.agreement_but_ties:.1f} % of "
            f"{parity.images} images",
            hint,
        )
    if exact and parity.relative_error > FLOAT_TOLERANCE:
        raise StageError(
            f"logits of the exported file differ from the graph's by {parity.max_abs_error:.2g} "
            f"({parity.relative_error:.1g} of the largest)",
            hint,
        )


def check_stored_weights(path: Path, graph: ModelGraph) -> None:
    """Raise StageError unless every quantized weight is stored as exactly its codes, and masks hold."""
    stored = [weight for node in ir.load(path).graph if (weight := stored_weight(node)) is not None]
    layers = layer_nodes(graph.module)
    for name in sorted(quantized_layers(graph.module)):
        if not _is_stored(stored, name, integer_weights(graph.module, layers[name][0].args[1]).numpy()):
            raise StageError(f"the integers stored for '{name}' are not the codes of its fake quantizer")
    masked = masked_layers(graph)
    for weight in stored:
        if weight.name in masked and not keeps_mask(weight, graph):
            pattern = masked[weight.name]
            raise StageError(
                f"'{weight.name}' was masked to {pattern}, but is not {pattern} in the exported file",
                "prune structurally before weights are masked, not after it",
            )


def _is_stored(stored: list[StoredWeight], name: str, codes: NDArray[Any]) -> bool:
    """Whether a file has these codes under this name, or, should equal tensors have been merged, under any."""
    named = [weight for weight in stored if weight.name == name] or stored
    return any(
        w.scales is not None and w.values.size == codes.size and np.array_equal(w.values, codes.reshape(w.values.shape))
        for w in named
    )
