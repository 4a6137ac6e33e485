"""The operator `vitslim::fake_quant`: quantise and dequantise in floating point, with learnable scales.

One node in the graph, with an ONNX lowering of its own (specs, ONNX lowering, section 1) and the gradients of learned
step size quantisation (LSQ, Esser et al., ICLR 2020), so that one graph serves calibration, training and export.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_SCALE = torch.finfo(torch.float32).tiny
"""A scale below the smallest normal number would make `x / scale` overflow."""


def integer_range(bits: int, narrow: bool) -> tuple[int, int]:
    """Smallest and largest code of a signed type: (-127, 127) for 8 narrow bits, (-128, 127) for 8 full ones.

    Weights use the narrow range, symmetric about zero; inputs use the full one, which is what QuantizeLinear clips to.
    """
    top: int = 2 ** (bits - 1) - 1
    return (-top if narrow else -top - 1), top


def integer_codes(x: Tensor, scale: Tensor, axis: int | None, qmin: int, qmax: int, zero_point: int = 0) -> Tensor:
    """Integer codes `clamp(round(x / scale) + zero_point, qmin, qmax)` as a tensor of x's type; ties go to even.

    `scale` has no dimension when `axis` is None, else one entry for each index of that axis of `x`.
    """
    # In place on the quotient: activations are large, and one temporary instead of four halves the time.
    return (x / _along(scale, x, axis)).round_().add_(zero_point).clamp_(qmin, qmax)


def _along(scale: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """The scale in a shape that broadcasts over x."""
    if axis is None:
        return scale
    return scale.reshape([-1 if dim == axis else 1 for dim in range(x.dim())])


@torch.library.custom_op("vitslim::fake_quant", mutates_args=())
def fake_quant(x: Tensor, scale: Tensor, zero_point: int, axis: int | None, qmin: int, qmax: int, block: int) -> Tensor:
    """Values of `x` that its quantised form can represent.

    x: float tensor of any shape. scale: float, positive, shape () for `axis` None, else (x.shape[axis],).
    axis: not negative. block: 0; larger blocks along the reduction axis are reserved for INT4 weights.
    Returns a tensor like x: `(codes - zero_point) * scale`. Raises NotImplementedError for a block other than 0.
    """
    if block != 0:
        raise NotImplementedError("blocked quantisation is not implemented")
    codes = integer_codes(x, scale, axis, qmin, qmax, zero_point)
    return codes.sub_(zero_point).mul_(_along(scale, x, axis))


@fake_quant.register_fake
def _fake(
    x: Tensor,
    scale: Tensor,  # noqa: ARG001
    zero_point: int,  # noqa: ARG001
    axis: int | None,  # noqa: ARG001
    qmin: int,  # noqa: ARG001
    qmax: int,  # noqa: ARG001
    block: int,  # noqa: ARG001
) -> Tensor:
    return torch.empty_like(x)


def fake_quant_gradients(
    gradient: Tensor, x: Tensor, scale: Tensor, zero_point: int, axis: int | None, qmin: int, qmax: int
) -> tuple[Tensor, Tensor]:
    """Straight-through gradient of x and learned-step-size gradient of the scale (LSQ, sections 2.1 and 2.2).

    Inside the range the gradient of x passes and that of the scale is `round(x/s) - x/s`; outside, x gets none and
    the scale gets the distance of the clipped code from zero. The scale's gradient is divided by
    `sqrt(elements per scale * qmax)`, so that its steps stay in proportion to those of the weights.
    """
    ratio = x / _along(scale, x, axis) + zero_point
    clipped = torch.clamp(torch.round(ratio), qmin, qmax)
    inside = (ratio >= qmin) & (ratio <= qmax)
    slope = torch.where(inside, clipped - ratio, clipped - zero_point) * gradient
    others = [dim for dim in range(x.dim()) if dim != axis]
    total = slope.sum(others) if others else slope
    elements = x.numel() / max(scale.numel(), 1)
    return gradient * inside, total / math.sqrt(max(elements * qmax, 1.0))


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor) -> None:  # noqa: ARG001
    x, scale, *arguments, _ = inputs
    ctx.save_for_backward(x, scale)  # type: ignore[arg-type]
    ctx.arguments = arguments  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, scale = ctx.saved_tensors  # type: ignore[attr-defined]
    x_gradient, scale_gradient = fake_quant_gradients(gradient, x, scale, *ctx.arguments)  # type: ignore[attr-defined]
    return x_gradient, scale_gradient, None, None, None, None, None


fake_quant.register_autograd(_backward, setup_context=_setup_context)
