"""Export profiles: which forms of quantizers, weights and layers an ONNX file has.

Export passes and checks read the properties of a profile, never its name. A new profile is one more value of
`PROFILES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """The form of an ONNX file. The defaults give the file that most runtimes read."""

    name: str
    description: str
    """One line for recipe keys and help."""
    quantized: bool = True
    """Whether the file can hold integers."""
    unsigned_activations: bool = False
    """True: quantized activations are unsigned, with a zero point where signed ones have none. False: they are signed,
    with zero points of 0; the bias of the layer compensates for the offset."""
    integer_attention: bool = False
    """Whether attention matmuls may be quantized: softmax outputs are unsigned integers."""
    dynamic_activations: bool = False
    """Whether scales of activations may be computed at run time."""
    integer_group_scales: bool = False
    """Whether group-wise weights may have integer group scales."""
    float8: bool = False
    """Whether weights and activations may be 8-bit floats."""
    weights_at_load: bool = False
    """True: the runtime converts weights once, when it loads the file: INT4 to INT8, and weights of float matmuls to
    float. False: every quantized weight goes through DequantizeLinear."""
    integer_gemms: bool = False
    """Whether quantized linear layers work on matrices (Gemm), and those with dynamic activations are MatMulInteger."""
    optimized_float: bool = False
    """Whether float models are optimized too. A plain float file is the baseline of every comparison."""
    half_precision: bool = False
    """Whether weights and activations are FLOAT16."""


PORTABLE = Profile(
    "portable",
    "signed integers, zero points of 0 and static scales, as TensorRT, OpenVINO and ONNX Runtime read them",
    float8=True,
)

ORT_CPU = Profile(
    "ort-cpu",
    "the forms that ONNX Runtime runs fastest on CPUs",
    unsigned_activations=True,
    integer_attention=True,
    dynamic_activations=True,
    integer_group_scales=True,
    weights_at_load=True,
    integer_gemms=True,
    optimized_float=True,
)
FP16 = Profile("fp16", "half-precision floats, for a model that is not quantized", quantized=False, half_precision=True)

PROFILES = {profile.name: profile for profile in (PORTABLE, ORT_CPU, FP16)}
"""Profile by name."""


def profiles_with(allows: Callable[[Profile], bool]) -> str:
    """Return the profiles that allow something, for a hint: `profile: a` or `profile: b`."""
    return " or ".join(f"`profile: {profile.name}`" for profile in PROFILES.values() if allows(profile))
