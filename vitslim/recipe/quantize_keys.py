"""Keys of quantization that contradict each other, or the profile of the file."""

from __future__ import annotations

from collections.abc import Iterator

from vitslim.recipe.stages import Ptq, Qat

UNUSED_BESIDE_INPUTS = {
    "float": ("input_bits", "calibrate", "float_inputs", "equalize", "scale_inputs", "attention", "full_range"),
    "dynamic": ("input_bits", "calibrate"),
}
"""Form of quantized inputs to the keys of quantization that it does not look at."""

FULL_BITS = 8
"""Of weights whose pairs can exceed 16 bits: those of 7 cannot."""

BLOCK_BITS_MAX = 4
"""Of weights in blocks beside inputs in codes: codes times the whole numbers of blocks are to fit into 8 bits."""

Found = tuple[str, str, str]
"""Key, message and hint."""


def contradictions(config: Ptq | Qat, portable: bool) -> Iterator[Found]:
    """What is wrong with the keys of a quantize stage; `portable` says whether the recipe writes a portable file."""
    yield from _zero_points(config)
    if isinstance(config, Ptq) and config.mean_bits is not None and config.mean_bits <= config.bits:
        message = f"a mean of {config.mean_bits:g} leaves no weight more than the {config.bits} bits that all have"
        yield "mean_bits", message, "write more, or fewer `bits`, or leave it out"
    if config.block and config.inputs != "float":
        yield from _whole_multiples(config, portable)
    fields = type(config).model_fields
    for key in UNUSED_BESIDE_INPUTS.get(config.inputs, ()):
        if key in fields and getattr(config, key) != fields[key].default:
            yield key, f"`inputs: {config.inputs}` has no use for {key}", "leave it out"
    if isinstance(config, Ptq) and config.full_range and not config.block and not _eight_bits(config):
        message = f"pairs of weights of {config.bits} bits stay within 16 bits with any processor"
        yield "full_range", message, "leave it out"
    if isinstance(config, Ptq) and not config.equalize and config.scale_inputs == "tokens":
        yield "scale_inputs", "`equalize: false` scales no inputs", "leave out one of the two"
    if config.inputs == "dynamic" and portable:
        message = "a portable file has static scales, dynamic inputs have none"
        yield "inputs", message, "write `export: {profile: ort-cpu}`"


def _eight_bits(config: Ptq) -> bool:
    return FULL_BITS in {config.bits, config.end_bits} or config.mean_bits is not None


def _zero_points(config: Ptq | Qat) -> Iterator[Found]:
    if not isinstance(config, Ptq) or not config.zero_points:
        return
    if not config.block:
        message = "weights without blocks are multiplied as integers, about zero"
        yield "zero_points", message, "add `block: 32` and `inputs: float`, or leave zero_points out"
    elif config.inputs != "float":
        message = f"weights beside {config.inputs} inputs are multiplied as integers, about zero"
        yield "zero_points", message, "add `inputs: float`, or leave zero_points out"


def _whole_multiples(config: Ptq | Qat, portable: bool) -> Iterator[Found]:
    """Weights in blocks beside inputs in codes: scales are whole multiples of one for the channel."""
    what = f"weights in blocks beside {config.inputs} inputs"
    if isinstance(config, Qat):
        message = f"{what}: training moves codes off the whole multiples that blocks stand for"
        yield "block", message, "write `method: ptq` or `inputs: float`, or leave block out"
    elif config.bits > BLOCK_BITS_MAX:
        message = f"{what}: codes of {config.bits} bits leave no room for the whole numbers of blocks"
        yield "block", message, f"write `bits: {BLOCK_BITS_MAX}` or `inputs: float`, or leave block out"
    elif portable:
        message = f"{what}: a portable file has no place for the whole numbers of blocks"
        yield "block", message, "write `export: {profile: ort-cpu}` or `inputs: float`, or leave block out"
