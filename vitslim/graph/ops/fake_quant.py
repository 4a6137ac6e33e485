"""The operators `vitslim::fake_quant` and `vitslim::dynamic_fake_quant`: quantize and dequantize in floating point.

One node in the graph each, with an ONNX lowering of its own (specs, ONNX lowering, section 1). Scales are learnable by
the gradients of learned step size quantization (LSQ, Esser et al., ICLR 2020), so that one graph serves calibration,
training and export.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_SCALE = torch.finfo(torch.float32).tiny
"""A scale below the smallest normal number would make `x / scale` overflow."""

DYNAMIC_TOP = 255
"""Largest code of a dynamic quantizer: that of the ONNX operator DynamicQuantizeLinear."""


def integer_range(bits: int, narrow: bool) -> tuple[int, int]:
    """Smallest and largest code of a signed type: (-127, 127) for 8 narrow bits, (-128, 127) for 8 full ones.

    Inputs use the full range, which is what QuantizeLinear clips to.
    """
    top: int = 2 ** (bits - 1) - 1
    return (-top if narrow else -top - 1), top


def weight_range(bits: int, block: int) -> tuple[int, int]:
    """Smallest and largest code of a weight: symmetric about zero, as integer products want it, and the full range for
    weights in blocks, which are multiplied as floats."""
    return integer_range(bits, narrow=not block)


def input_range(bits: int, zero_point: int | None) -> tuple[int, int]:
    """Smallest and largest code of an input: signed without a zero point, else unsigned, (0, 255) for 8 bits."""
    return integer_range(bits, narrow=False) if zero_point is None else (0, 2**bits - 1)


def integer_codes(
    x: Tensor, scale: Tensor, axis: int | None, qmin: int, qmax: int, zero_point: int | Tensor = 0, block: int = 0
) -> Tensor:
    """Integer codes `clamp(round(x / scale) + zero_point, qmin, qmax)` as a tensor of x's type; ties go to even.

    `scale` has no dimension when `axis` is None, else one entry for each index of that axis of `x`; with a block, the
    dimensions of `x` but for one entry a run of `block` along `axis`. `zero_point` is one number, or like `scale`.
    """
    zero = _spread_zero(zero_point, x, axis, block)
    # In place on the quotient: activations are large, and one temporary instead of four halves the time.
    return (x / spread_scale(scale, x, axis, block)).round_().add_(zero).clamp_(qmin, qmax)


def _spread_zero(zero_point: int | Tensor, x: Tensor, axis: int | None, block: int) -> int | Tensor:
    return spread_scale(zero_point, x, axis, block) if isinstance(zero_point, Tensor) else zero_point


def spread_scale(scale: Tensor, x: Tensor, axis: int | None, block: int = 0) -> Tensor:
    """The scale in a shape that broadcasts over x."""
    if axis is None:
        return scale
    if block:
        return scale.repeat_interleave(block, dim=axis).narrow(axis, 0, x.shape[axis])
    return scale.reshape([-1 if dim == axis else 1 for dim in range(x.dim())])


@torch.library.custom_op("vitslim::fake_quant", mutates_args=())
def fake_quant(  # noqa: PLR0913, PLR0917 - an operator takes tensors and numbers, no classes
    x: Tensor, scale: Tensor, zero_point: int, axis: int | None, qmin: int, qmax: int, block: int,
    zeros: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Values of `x` that its quantized form can represent.

    x: float tensor of any shape. scale: float, positive, shape () for `axis` None, else (x.shape[axis],); with
    `block` > 0 of x's shape but for ceil(x.shape[axis] / block) entries along `axis`. axis: not negative. zeros: float
    of the scale's shape, whole numbers that stand in place of `zero_point`.
    Returns a tensor like x: `(codes - zero_point) * scale`.
    """
    zero = zero_point if zeros is None else zeros
    codes = integer_codes(x, scale, axis, qmin, qmax, zero, block)
    return codes.sub_(_spread_zero(zero, x, axis, block)).mul_(spread_scale(scale, x, axis, block))


@fake_quant.register_fake
def _fake(  # noqa: PLR0913, PLR0917
    x: Tensor,
    scale: Tensor,  # noqa: ARG001
    zero_point: int,  # noqa: ARG001
    axis: int | None,  # noqa: ARG001
    qmin: int,  # noqa: ARG001
    qmax: int,  # noqa: ARG001
    block: int,  # noqa: ARG001
    zeros: Tensor | None = None,  # noqa: ARG001
) -> Tensor:
    return torch.empty_like(x)


def fake_quant_gradients(
    gradient: Tensor, x: Tensor, scale: Tensor, zero_point: int | Tensor, axis: int | None, limits: tuple[int, int],
    block: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Straight-through gradient of x and learned-step-size gradient of the scale (LSQ, sections 2.1 and 2.2).

    Inside the range the gradient of x passes and that of the scale is `round(x/s) - x/s`; outside, x gets none and
    the scale gets the distance of the clipped code from zero. The scale's gradient is divided by
    `sqrt(elements per scale * qmax)`, so that its steps stay in proportion to those of the weights.
    """
    ratio = x / spread_scale(scale, x, axis, block) + zero_point
    qmin, qmax = limits
    clipped = torch.clamp(torch.round(ratio), qmin, qmax)
    inside = (ratio >= qmin) & (ratio <= qmax)
    slope = torch.where(inside, clipped - ratio, clipped - zero_point) * gradient
    elements = x.numel() / max(scale.numel(), 1)
    return gradient * inside, _summed(slope, axis, block, scale) / math.sqrt(max(elements * qmax, 1.0))


def _summed(slope: Tensor, axis: int | None, block: int, scale: Tensor) -> Tensor:
    """The sum over all elements that share a scale, in the shape of the scale."""
    if block and axis is not None:
        run = torch.arange(slope.shape[axis], device=slope.device) // block
        return torch.zeros_like(scale).index_add_(axis, run, slope)
    others = [dim for dim in range(slope.dim()) if dim != axis]
    return slope.sum(others) if others else slope


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor) -> None:  # noqa: ARG001
    x, scale, zero_point, axis, qmin, qmax, block, zeros = inputs
    ctx.save_for_backward(x, scale, zeros)  # type: ignore[arg-type]
    ctx.arguments = (zero_point, axis, (qmin, qmax), block)  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zeros = ctx.saved_tensors  # type: ignore[attr-defined]
    zero_point, axis, limits, block = ctx.arguments  # type: ignore[attr-defined]
    zero = _spread_zero(zero_point if zeros is None else zeros, x, axis, block)
    x_gradient, scale_gradient = fake_quant_gradients(gradient, x, scale, zero, axis, limits, block)
    return x_gradient, scale_gradient, None, None, None, None, None, None


fake_quant.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("vitslim::dynamic_fake_quant", mutates_args=())
def dynamic_fake_quant(x: Tensor) -> Tensor:
    """Values of `x` that 256 codes between its own smallest and largest value, zero included, can represent.

    As the ONNX operator DynamicQuantizeLinear: one scale and one zero point for the whole tensor. A tensor of zeros
    stays as it is.
    """
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = ((high - low) / DYNAMIC_TOP).clamp(min=MIN_SCALE)
    zero_point = torch.clamp(torch.round(-low / scale), 0, DYNAMIC_TOP)
    codes = (x / scale).round_().add_(zero_point).clamp_(0, DYNAMIC_TOP)
    return codes.sub_(zero_point).mul_(scale)


@dynamic_fake_quant.register_fake
def _dynamic_fake(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _pass_through(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:  # noqa: ARG001
    """No value lies outside the range, so the straight-through gradient is the gradient."""
    return gradient


dynamic_fake_quant.register_autograd(_pass_through)
