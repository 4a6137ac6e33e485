"""The operators `vitslim::fake_quant` and `vitslim::dynamic_fake_quant`: quantize and dequantize in floating point.

Each is one node of a graph and has one ONNX translation. Scales are trained with the gradients of learned step size
quantization (LSQ, Esser et al., ICLR 2020), so calibration, training and export use the same graph.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vitslim.graph.ops.elementwise import in_parts, just_outside, where_inside, widened
from vitslim.ranks import rank_count

QUANTIZER_PREFIX = "vitslim.q."
"""Prefix of the parameters and buffers that hold scales and zero points."""

MIN_SCALE = torch.finfo(torch.float32).tiny
"""Smallest allowed scale, the smallest normal number: below it `x / scale` overflows."""

DYNAMIC_MAX = 255
"""Largest integer of a dynamic quantizer, as in the ONNX operator DynamicQuantizeLinear."""


def integer_range(bits: int, narrow: bool) -> tuple[int, int]:
    """Smallest and largest integer of a signed type: (-127, 127) for 8 bits narrow, (-128, 127) for the full range."""
    top: int = 2 ** (bits - 1) - 1
    return (-top if narrow else -top - 1), top


def weight_range(bits: int, group_size: int) -> tuple[int, int]:
    """Smallest and largest integer of a weight.

    Symmetric about zero for integer matmuls; the full range for per-group weights, which are multiplied in float.
    """
    return integer_range(bits, narrow=not group_size)


def activation_range(bits: int, zero_point: int | None, narrow: bool = False) -> tuple[int, int]:
    """Smallest and largest integer of an activation, the range that QuantizeLinear clips to.

    Signed without a zero point, symmetric about zero if `narrow`; else unsigned: (0, 255) for 8 bits.
    """
    return integer_range(bits, narrow) if zero_point is None else (0, 2**bits - 1)


def to_integers(
    x: Tensor, scale: Tensor, axis: int | None, qmin: int, qmax: int, zero_point: int | Tensor = 0, group_size: int = 0
) -> Tensor:
    """Return `clamp(round(x / scale) + zero_point, qmin, qmax)` in the dtype of `x`; ties round to even.

    scale: shape () for `axis` None, else (x.shape[axis],); with a `group_size` the shape of `x`, except that the
    dimension `axis` has one entry for each group. zero_point: one integer, or a tensor of the scale's shape.
    """
    zero = _expand_zero_point(zero_point, x, axis, group_size)
    # In place on the quotient: activations are large, and one temporary instead of four halves the time.
    return (x / expand_scale(scale, x, axis, group_size)).round_().add_(zero).clamp_(qmin, qmax)


def _expand_zero_point(zero_point: int | Tensor, x: Tensor, axis: int | None, group_size: int) -> int | Tensor:
    return expand_scale(zero_point, x, axis, group_size) if isinstance(zero_point, Tensor) else zero_point


def expand_scale(scale: Tensor, x: Tensor, axis: int | None, group_size: int = 0) -> Tensor:
    """Return the scale in a shape that broadcasts to `x`."""
    if axis is None:
        return scale
    if group_size:
        return scale.repeat_interleave(group_size, dim=axis).narrow(axis, 0, x.shape[axis])
    return scale.reshape([-1 if dim == axis else 1 for dim in range(x.dim())])


@torch.library.custom_op("vitslim::fake_quant", mutates_args=())
def fake_quant(  # noqa: PLR0913, PLR0917 - an operator takes tensors and numbers, no classes
    x: Tensor, scale: Tensor, zero_point: int, axis: int | None, qmin: int, qmax: int, group_size: int,
    zero_points: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return `(integers - zero_point) * scale`, the values of `x` after quantization; same shape and dtype as `x`.

    x: float tensor of any shape. scale: float, positive, shape () for `axis` None, else (x.shape[axis],); with
    `group_size` > 0 the shape of x, except for ceil(x.shape[axis] / group_size) entries along `axis`. axis: not
    negative. zero_points: integers as float in the scale's shape; they replace `zero_point`.
    """
    zero = zero_point if zero_points is None else zero_points
    result = torch.empty_like(x)
    for part, out in in_parts(x, result, whole=axis is not None):
        integers = to_integers(widened(part), scale, axis, qmin, qmax, zero, group_size)
        centered = integers.sub_(_expand_zero_point(zero, x, axis, group_size))
        out.copy_(centered.mul_(expand_scale(scale, x, axis, group_size)))
    return result


@fake_quant.register_fake
def _fake(  # noqa: PLR0913, PLR0917
    x: Tensor,
    scale: Tensor,  # noqa: ARG001
    zero_point: int,  # noqa: ARG001
    axis: int | None,  # noqa: ARG001
    qmin: int,  # noqa: ARG001
    qmax: int,  # noqa: ARG001
    group_size: int,  # noqa: ARG001
    zero_points: Tensor | None = None,  # noqa: ARG001
) -> Tensor:
    return torch.empty_like(x)


def fake_quant_gradients(  # noqa: PLR0913, PLR0917 - as above
    gradient: Tensor, x: Tensor, scale: Tensor, zero_point: int | Tensor, axis: int | None, limits: tuple[int, int],
    group_size: int, ranks: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Straight-through gradient of `x` and LSQ gradient of the scale (Esser et al., ICLR 2020, sections 2.1 and 2.2).

    Inside the range the gradient of x passes and that of the scale is `round(x/s) - x/s`; outside, x gets none and
    the scale gets the distance of the clipped integer from zero. The scale's gradient is divided by
    `sqrt(elements per scale * qmax)`, so that the updates of scales stay in proportion to those of weights. ranks:
    number of parts of which x is one; its elements are those of all parts.
    """
    passed, total = torch.empty_like(x), torch.zeros_like(scale)
    divisor, limits_outside = expand_scale(scale, x, axis, group_size), just_outside(*limits)
    for part, gradient_part, out in in_parts(x, gradient, passed, whole=axis is not None):
        incoming = widened(gradient_part)
        ratio = (widened(part) / divisor).add_(zero_point)
        inside = where_inside(incoming, ratio, *limits_outside)
        clipped = ratio.clamp_(*limits).sub_(zero_point)
        slope = clipped.round().mul_(incoming).addcmul_(clipped, inside, value=-1)
        out.copy_(inside)
        total += _sum_to_scale(slope, axis, group_size, scale)
    elements = ranks * x.numel() / max(scale.numel(), 1)
    return passed, total / math.sqrt(max(elements * limits[1], 1.0))


def _sum_to_scale(slope: Tensor, axis: int | None, group_size: int, scale: Tensor) -> Tensor:
    """Sum over all elements that share a scale; the result has the shape of the scale."""
    if group_size and axis is not None:
        group = torch.arange(slope.shape[axis], device=slope.device) // group_size
        return torch.zeros_like(scale).index_add_(axis, group, slope)
    others = [dim for dim in range(slope.dim()) if dim != axis]
    return slope.sum(others) if others else slope


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor) -> None:  # noqa: ARG001
    x, scale, zero_point, axis, qmin, qmax, group_size, zero_points = inputs
    ctx.save_for_backward(x, scale, zero_points)  # type: ignore[arg-type]
    # The ranks share activations, and all have the same weights.
    parts = 1 if isinstance(x, nn.Parameter) else rank_count()
    ctx.arguments = (zero_point, axis, (qmin, qmax), group_size, parts)  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zero_points = ctx.saved_tensors  # type: ignore[attr-defined]
    zero_point, axis, limits, group_size, parts = ctx.arguments  # type: ignore[attr-defined]
    zero = _expand_zero_point(zero_point if zero_points is None else zero_points, x, axis, group_size)
    x_gradient, scale_gradient = fake_quant_gradients(gradient, x, scale, zero, axis, limits, group_size, parts)
    return x_gradient, scale_gradient, None, None, None, None, None, None


fake_quant.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("vitslim::dynamic_fake_quant", mutates_args=())
def dynamic_fake_quant(x: Tensor) -> Tensor:
    """Quantize `x` to 8 bits with the scale and zero point of its own range, which includes zero, and dequantize it.

    The same as the ONNX operator DynamicQuantizeLinear: one scale and one zero point for the whole tensor. A tensor of
    zeros is returned unchanged.
    """
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = ((high - low) / DYNAMIC_MAX).clamp(min=MIN_SCALE)
    zero_point = torch.clamp(torch.round(-low / scale), 0, DYNAMIC_MAX)
    integers = (x / scale).round_().add_(zero_point).clamp_(0, DYNAMIC_MAX)
    return integers.sub_(zero_point).mul_(scale)


@dynamic_fake_quant.register_fake
def _dynamic_fake(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _pass_through(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:  # noqa: ARG001
    """Return the gradient unchanged: no value lies outside the range."""
    return gradient


dynamic_fake_quant.register_autograd(_pass_through)

FAKE_QUANT = torch.ops.vitslim.fake_quant.default
DYNAMIC_FAKE_QUANT = torch.ops.vitslim.dynamic_fake_quant.default
