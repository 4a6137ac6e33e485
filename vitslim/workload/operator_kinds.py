"""Kinds of ONNX operators."""

from __future__ import annotations

from vitslim.workload.operators import OpKind

KINDS: dict[OpKind, str] = {
    "softmax": "Softmax LogSoftmax QLinearSoftmax",
    "norm": "LayerNormalization RMSNormalization BatchNormalization InstanceNormalization GroupNormalization "
    "LpNormalization",
    "elementwise": "Abs Add And BitShift Ceil Celu Clip CumSum Cos Div Elu Equal Erf Exp Floor Gelu Greater "
    "GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg "
    "Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Swish Tanh Where Xor "
    "QLinearAdd QLinearLeakyRelu QLinearMul QLinearSigmoid QuickGelu",
    "movement": "Cast CastLike Concat ConstantOfShape DepthToSpace Dropout Expand EyeLike Flatten Gather Identity Pad "
    "QLinearConcat Range Reshape Resize Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze",
    "select": "ArgMax ArgMin GatherElements GatherND NonZero OneHot ScatterElements ScatterND TopK Unique",
    "quantize": "QuantizeLinear DequantizeLinear DynamicQuantizeLinear",
}
REDUCTIONS = (
    "AveragePool GlobalAveragePool GlobalMaxPool MaxPool ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean "
    "ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)
"""Operators whose work is proportional to the elements of their input, not of their output."""
REDUCING = frozenset(REDUCTIONS.split())
KIND_OF: dict[str, OpKind] = {name: kind for kind, names in KINDS.items() for name in names.split()}

DOMAINS = ("", "ai.onnx")
"""Domains of the standard operators."""

CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
"""Operators that contain subgraphs."""

VIEWS = frozenset(
    {"DequantizeLinear", "Dropout", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)
"""Operators that need no kernel: their consumer reads the same memory with other strides, or dequantizes on load."""
