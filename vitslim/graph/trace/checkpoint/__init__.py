"""Read checkpoints in the formats that people have, and fit them to a timm model."""

from vitslim.graph.trace.checkpoint.fit import Weights, read_weights

__all__ = ["Weights", "read_weights"]
