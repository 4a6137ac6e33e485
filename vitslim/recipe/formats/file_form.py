"""The interface of an ONNX file: names of its input and outputs, batch size, and operator set."""

from __future__ import annotations

from dataclasses import dataclass

INPUT, BATCH = "pixel_values", "batch_size"
"""Names of the input and of its dynamic dimension, as Optimum writes them."""
LOGITS = "logits"
"""Name of the output of a classifier."""
OPSETS = (17, 23)
"""Lowest and highest opset of a file. LayerNormalization needs 17."""
OPSET = 21
INT4_OPSET, FLOAT8_OPSET = 21, 19
"""First opsets whose Q/DQ have INT4 and groups of weights, and 8-bit floats."""


@dataclass(frozen=True)
class FileForm:
    """Choices about a file that leave its results unchanged."""

    input_name: str = INPUT
    output_name: str | None = None
    """None: the names that the model gives its outputs."""
    batch: int | None = None
    """Number of images of a batch; None for a dynamic batch."""
    opset: int = OPSET

    def output_names(self, own: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return the names of the outputs: `output_name` for one output, with `_0`, `_1`, ... for several.

        own: the names that the model gives its outputs, which `output_name` replaces; default: `logits`.
        """
        own = own or (LOGITS,)
        if self.output_name is None:
            return own
        return (self.output_name,) if len(own) == 1 else tuple(f"{self.output_name}_{i}" for i in range(len(own)))
