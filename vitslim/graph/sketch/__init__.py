"""The model without weights: sizes, matmuls, bits and sparsity, and the cost that follows from them."""

from vitslim.graph.sketch.from_graph import cost, sketch
from vitslim.graph.sketch.model_sketch import LayerBits, Matmul, ModelSketch, SketchBranch, SketchLinear
from vitslim.graph.sketch.size import Size

__all__ = ["LayerBits", "Matmul", "ModelSketch", "Size", "SketchBranch", "SketchLinear", "cost", "sketch"]
