"""The model without weights: sizes, matmuls, bits and sparsity, and the cost that follows from them."""

from vitslim.graph.sketch.from_graph import cost, sketch
from vitslim.graph.sketch.matmul import Matmul
from vitslim.graph.sketch.merge_matmuls import merge_cuts
from vitslim.graph.sketch.model_sketch import LayerBits, ModelSketch, SketchBranch, SketchLinear
from vitslim.graph.sketch.operators import OPERATOR_KINDS, Operator
from vitslim.graph.sketch.predictor_cuts import predictor_cuts
from vitslim.graph.sketch.size import Size
from vitslim.graph.sketch.token_matmuls import TokenCut, attention_cuts

__all__ = [
    "OPERATOR_KINDS",
    "LayerBits",
    "Matmul",
    "ModelSketch",
    "Operator",
    "Size",
    "SketchBranch",
    "SketchLinear",
    "TokenCut",
    "attention_cuts",
    "cost",
    "merge_cuts",
    "predictor_cuts",
    "sketch",
]
