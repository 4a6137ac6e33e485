"""The stage entries of a recipe: one frozen, typed config a method. What they do lives in `vitslim/stages`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from vitslim.recipe.config import ASSUMED, EXPECTED, Config, KeepRatio, Ratio, StageConfig
from vitslim.recipe.teaching import FeatureWeight, Taught, Teacher, Train


class Ratios(Config):
    """Fractions that go, by kind of axis; a kind that is left out follows `ratio`, heads stay.

    Where heads go, their dims stay whole unless `head_dim` is given too: the two multiply.
    """

    heads: Ratio = Field(0.0, description="whole attention heads")
    head_dim: Ratio | None = Field(None, description="dimensions of every head")
    hidden: Ratio | None = Field(None, description="hidden units of the MLPs")
    embedding: Ratio | None = Field(None, description="the residual stream")


class Budget(Config):
    """How much of the model that the stage gets may stay; one of `macs`, `params` and `latency`."""

    macs: KeepRatio | None = None
    params: KeepRatio | None = None
    latency: KeepRatio | None = None
    table: str | None = Field(None, description="latency table written by `vitslim bench --table`")


class GroupSparsity(Config):
    """Training before the cut that pushes weak groups towards zero (DepGraph, section 3.3)."""

    gamma: PositiveFloat = Field(1e-4, description="strength of the regularization")
    alpha: PositiveFloat = Field(4.0, description="the weakest group is pushed 2**alpha times as hard as the strongest")
    train: Train = Train()


class DepGraph(StageConfig):
    """Structural pruning of coupled groups (DepGraph, CVPR 2023)."""

    method: Literal["depgraph"]
    importance: Literal["magnitude_l1", "magnitude_l2", "taylor", "hessian", "lamp", "random"] = "magnitude_l2"
    reduction: Literal["mean", "sum", "max"] = Field("mean", description="how the members of a group make one score")
    normalization: Literal["mean", "max", "sum", "none"] = Field(
        "mean", description="what the scores of a group are divided by, so that groups compare"
    )
    ratio: Ratio | tuple[Ratio, ...] = Field(0.5, description="fraction of the indices that go; a list: one a block")
    ratios: Ratios = Ratios()
    axes: dict[str, Ratio] = Field({}, description="fractions for single axes, by the names that `vitslim axes` shows")
    budget: Budget | None = Field(None, description="scale all ratios until the model is this small")
    scope: Literal["local", "global", "isomorphic"] = Field("local", description="which indices are ranked together")
    mode: Literal["uniform", "bottleneck"] = Field("uniform", description="bottleneck leaves the embedding untouched")
    round_to: PositiveInt = Field(16, description="kept indices are rounded down to a multiple of this")
    max_ratio: Ratio = Field(0.95, description="no axis loses more than this")
    steps: PositiveInt = Field(1, description="cut in so many steps, scoring afresh before each")
    sparsity: GroupSparsity | None = None
    batches: PositiveInt = Field(8, description="calibration batches for Taylor and Hessian importance")
    batch: PositiveInt = 32


class Unstructured(StageConfig):
    """Magnitude pruning of single weights; nothing gets faster by it, the size in CSR is reported."""

    method: Literal["unstructured"]
    sparsity: Ratio = Field(0.5, description="fraction of the weights that become zero")
    scope: Literal["local", "global"] = Field("global", description="which weights are ranked together")
    layers: Literal["gemm"] | tuple[str, ...] = Field("gemm", description="all layers but the head, or names of layers")


class Layers(StageConfig):
    """Whole blocks or residual branches go, those first whose removal changes the outputs least."""

    method: Literal["layers"]
    remove: PositiveInt = Field(1, description="how many blocks or branches go")
    unit: Literal["block", "branch"] = Field("block", description="branch: attention and MLP go one by one")
    batches: PositiveInt = Field(4, description="calibration batches for the sensitivity")
    batch: PositiveInt = 32


class Permute(Config):
    """Axes whose channels are put into the order in which a mask keeps most; the model computes the same."""

    mlp: bool = Field(True, json_schema_extra={ASSUMED: True}, description="hidden units of the MLPs, for fc2")
    v: bool = Field(True, json_schema_extra={ASSUMED: True}, description="values of attention, for proj")
    embed: bool = Field(
        False,
        json_schema_extra={ASSUMED: True},
        description="the residual stream, for qkv and fc1 of all blocks at once",
    )


class TwoFour(StageConfig):
    """Sparsity that tensor cores read: of every few weights along the reduction dimension some stay."""

    method: Literal["two-four"]
    layers: Literal["gemm"] | tuple[str, ...] = Field(
        "gemm", description="all eligible linear layers, or names of layers"
    )
    pattern: str = Field(
        "2:4",
        pattern=r"^([1-9]\d?:[1-9]\d?|2:4-pairs)$",
        description="2:4; 2:4-pairs, two of four adjacent pairs, for weights of 4 bits; or another N:M",
        json_schema_extra={EXPECTED: "2:4, 2:4-pairs or another N:M"},
    )
    score: Literal["magnitude", "wanda", "sparsegpt", "alps", "kfac"] = Field(
        "magnitude",
        description="which weights stay: the largest; those that are large times the norm of their input; those whose "
        "loss the others of their row can least make up for, which then do; alps: as sparsegpt, but chosen all at "
        "once; kfac: as alps, where the weights of all rows make up for each other, the closest and the slowest. All "
        "but magnitude look at the calibration images",
    )
    permute: Permute | None = Field(None, description="choose an order of channels before the mask")


class Distill(Taught):
    """Training with a teacher; `teacher: none` is plain fine-tuning."""

    method: Literal["distill"] = "distill"


Bits = Annotated[int, Field(ge=2, le=8)]


class Quantized(StageConfig):
    """Keys that all ways of quantizing share."""

    bits: Bits = Field(8, description="of weights")
    input_bits: Bits = Field(8, description="of the inputs of layers")
    end_bits: Bits | None = Field(
        None,
        description="of the weights of the patch embedding and the head, without blocks; left out: as all others",
    )
    block: Literal[0, 16, 32, 64, 128] = Field(
        0,
        description="weights of an output channel that share a scale; 0: all of them. Beside inputs in codes, for 2 to "
        "4 bits: scales are whole multiples of one for the channel, and the product is of codes all the same",
    )
    skip: tuple[str, ...] = Field((), description="layers that stay in float")


class Ptq(Quantized):
    """Post-training quantization from calibration images."""

    method: Literal["ptq"] = "ptq"
    inputs: Literal["static", "symmetric", "dynamic", "float"] = Field(
        "static",
        description="static: calibrated, with a zero point where it helps; symmetric: without; dynamic: from each "
        "batch; float: only weights are quantized",
    )
    calibrate: Literal["minmax", "mse", "entropy"] = Field("minmax", description="how the range of inputs is chosen")
    equalize: bool = Field(
        True,
        description="channels of norm outputs and of values are brought to one centered range, the inverse folded into "
        "the weights behind; each place as far as calibration images of other classes than its range is from allow",
    )
    rotate: bool = Field(
        False,
        description="residual streams are computed in a random basis, which is folded into the weights around them: no "
        "channel is far from the others. Streams with 2:4 weights stay as they are",
    )
    scale_inputs: Literal["channels", "tokens", "none"] = Field(
        "channels",
        description="what becomes at run time of inputs that `equalize` cannot reach, as those behind GELU. channels: "
        "multiplied channel by channel, so that none is much larger than the others; tokens: divided token by token by "
        "their largest magnitude, which is closer by 2 dB for DeiT-Tiny, and 2 % slower (OpenVINO: up to 6 %)",
    )
    attention: bool = Field(
        False,
        description="both products of attention are of codes too: of queries, keys, probabilities and values. Faster "
        "where the processor has instructions for codes, and farther from the float model",
    )
    mean_bits: Annotated[float, Field(gt=2, le=8)] | None = Field(
        None,
        description="of all weights that are quantized, at most: those whose few bits harm the outputs most for their "
        "size get 8. Left out: all have `bits`",
    )
    zero_points: bool = Field(
        False,
        description="blocks of weights have a zero point beside their scale, which TensorRT does not read",
    )
    full_range: bool = Field(
        False,
        description="weights use all codes of 8 bits, for processors that add products in 32 bits: with VNNI or AMX, "
        "ARM, GPUs. Others cut off what two products have beyond 16 bits, and weights are kept from that otherwise",
    )
    rounding: Literal["nearest", "gptq"] = Field(
        "gptq", description="gptq: what one weight is rounded away, its successors make up for"
    )
    bias_correction: bool = Field(True, description="move biases so that the mean of every layer's outputs stays")
    float_inputs: Annotated[int, Field(ge=0)] = Field(
        0, description="so many inputs, those that harm the outputs most, stay in float"
    )


class Qat(Quantized, Taught):
    """Quantization-aware training: the steps of all quantizers are learned with the weights (LSQ, GPUSQ section 5)."""

    method: Literal["qat"]
    inputs: Literal["symmetric", "static", "float"] = Field(
        "symmetric",
        json_schema_extra={ASSUMED: True},
        description="static: with a zero point where it helps; float: only weights are quantized",
    )
    calibrate: Literal["minmax", "mse", "entropy"] = Field(
        "mse", json_schema_extra={ASSUMED: True}, description="how the range of inputs is chosen before training"
    )
    rounding: Literal["nearest", "gptq"] = Field(
        "gptq", json_schema_extra={ASSUMED: True}, description="where the codes of weights start"
    )
    feature_weight: FeatureWeight | None = Field(None, description="left out: all blocks weigh the same")
    teacher: Teacher = "previous"


QUANTIZE = (Ptq, Qat)
"""Methods that make a model integer."""


class Etps(StageConfig):
    """eTPS: keep the tokens that the class token attends to most, squeeze the others into them (CVPR 2023)."""

    method: Literal["etps"]
    blocks: tuple[Annotated[int, Field(ge=0)], ...] = (3, 6, 9)
    keep: KeepRatio = 0.7
    rounding: Literal["ceil", "floor"] = Field(
        "ceil", description="assumed: the paper does not say", json_schema_extra={ASSUMED: True}
    )


class Floor(Config):
    """How close a quantized file must stay to the model before quantization, on calibration images."""

    sqnr_db: float = Field(23.0, description="signal to quantization noise of the logits, in decibels")
    agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        0.985, description="fraction of equal predictions, refused where the images show less and not by chance"
    )


class Export(StageConfig):
    """The ONNX file."""

    method: Literal["onnx"] = "onnx"
    opset: Literal[21] = 21
    profile: Literal["portable", "ort-cpu", "auto", "fp16"] = Field(
        "portable",
        description="portable: signed codes, zero points of 0; ort-cpu: the forms that ONNX Runtime is fastest with; "
        "auto: the placement of quantizers that is measured to be fastest there and holds the floor; fp16: floats of "
        "half precision, for a model that is not quantized",
    )
    floor: Floor = Field(Floor(), description="for `profile: auto`")


AnyStage = DepGraph | TwoFour | Unstructured | Layers | Distill | Ptq | Qat | Etps | Export


def training_of(config: StageConfig) -> Train | None:
    """The schedule by which a stage trains; None for one that does not."""
    if isinstance(config, Taught):
        return config.train
    return config.sparsity.train if isinstance(config, DepGraph) and config.sparsity else None


KINDS: dict[str, tuple[type[StageConfig], ...]] = {
    "prune": (DepGraph, TwoFour, Unstructured, Layers),
    "distill": (Distill,),
    "quantize": (Ptq, Qat),
    "token-squeeze": (Etps,),
    "export": (Export,),
}
"""Stage kind, as written in a recipe, to the configs of its methods."""
