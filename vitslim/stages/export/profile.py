"""Export profiles: which forms of quantizers, weights and layers a file has.

Passes and refusals ask the properties of a profile, never its name. A new profile is one more value of `PROFILES`, and
its name in `vitslim.recipe.stages.export`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """The form of an ONNX file. The defaults give the file that most runtimes read."""

    name: str
    quantized: bool = True
    """Whether the file can hold integers."""
    unsigned_activations: bool = False
    """True: quantized activations are unsigned, with a zero point where signed ones have none. False: they are signed,
    with zero points of 0; the bias of the layer makes up for the offset."""
    integer_attention: bool = False
    """Whether the matmuls of attention may be quantized: softmax outputs are unsigned integers."""
    integer_group_scales: bool = False
    """Whether group-wise weights may have integer group scales."""
    weights_at_load: bool = False
    """True: the runtime converts weights once, when it loads the file: INT4 to INT8, and weights of float matmuls to
    float. False: every quantized weight goes through DequantizeLinear."""
    integer_gemms: bool = False
    """Whether quantized linear layers work on matrices (Gemm), and those with dynamic activations are MatMulInteger."""
    optimized_float: bool = False
    """Whether float models are optimized too. A plain float file is the baseline of every comparison."""
    half_precision: bool = False
    """Whether weights and activations are FLOAT16."""


PORTABLE = Profile("portable")
"""As TensorRT, OpenVINO and ONNX Runtime read it."""

ORT_CPU = Profile(
    "ort-cpu",
    unsigned_activations=True,
    integer_attention=True,
    integer_group_scales=True,
    weights_at_load=True,
    integer_gemms=True,
    optimized_float=True,
)
"""The forms that ONNX Runtime runs fastest on CPUs."""

FP16 = Profile("fp16", quantized=False, half_precision=True)
"""A float model in half precision."""

PROFILES = {profile.name: profile for profile in (PORTABLE, ORT_CPU, FP16)}
"""Profile by name."""
