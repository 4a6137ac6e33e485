"""The operator `vitslim::pseudo_quant`: clip a tensor and add noise of the size of a quantization step. Only training
uses it.

Rounding is replaced by noise, so no straight-through estimator is on the data path; the range and the bits of a tensor
are learned. Source: NIPQ (Shin et al., CVPR 2023).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, distributed
from torch.library import Library
from torch.nn import functional

from vitslim.graph.ops.elementwise import in_parts, where_inside, widened
from vitslim.graph.ops.image_draws import draw_for_images
from vitslim.ranks import rank_count

BINS = 256
"""Bins of the histogram of rounding errors."""


def learned_bits(state: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Return `low + (high - low) * sigmoid(state)`, the bits of a tensor; float of the shape of the state."""
    return low + (high - low) * torch.sigmoid(state)


def round_straight(x: Tensor) -> Tensor:
    """Round to the nearest integer; the gradient is that of the identity."""
    return x + (torch.round(x) - x).detach()


def sampled_bits(bits: Tensor, low: float, high: float) -> Tensor:
    """Return `round(bits + u)` with one draw of u in [-0.5, 0.5) for each element, within [low, high]."""
    return round_straight(bits + torch.rand_like(bits) - 0.5).clamp(low, high)


def levels(bits: Tensor, signed: bool) -> Tensor:
    """Return the largest integer: `2^(bits - 1) - 1` of signed integers, `2^bits - 1` of unsigned ones."""
    return torch.exp2(bits - 1 if signed else bits) - 1


def range_state(high: Tensor) -> Tensor:
    """Return the state whose softplus is `high`, a positive float tensor: `log(exp(high) - 1)`."""
    return high + torch.log(-torch.expm1(-high))


def rounding_error_noise(x: Tensor, step: Tensor, counted: Tensor, images: bool = False) -> Tensor:
    """Draw noise from the distribution of the rounding errors of a tensor: in [-0.5, 0.5], in units of the step.

    x: float, any shape. step: broadcasts to x. counted: bool, of the shape of x, True for the elements whose errors
    count. The distribution is a histogram of `BINS` bins; a position within a bin is uniform. Uniform if no element
    counts. images: x has one row for each image, and the distribution is that of the images of all ranks. Returns float
    of the shape of x.
    """
    ratio = (x / step)[counted].float()
    counts = torch.histc(torch.round(ratio) - ratio, bins=BINS, min=-0.5, max=0.5)
    if images and rank_count() > 1:
        distributed.all_reduce(counts)
    counts = torch.where(counts.sum() > 0, counts, torch.ones_like(counts))
    upper = counts.cumsum(0) / counts.sum()
    draws = uniform_noise(x.shape, x.device, images).add_(0.5)
    found = torch.searchsorted(upper, draws, right=True).clamp_(max=BINS - 1)
    share = counts / counts.sum()
    within = (draws - (upper - share)[found]) / share[found].clamp(min=torch.finfo(share.dtype).tiny)
    return ((found + within.clamp_(0, 1)) / BINS - 0.5).to(x.dtype)


def uniform_noise(shape: torch.Size, device: torch.device, images: bool) -> Tensor:
    """Return float32 numbers in (-0.5, 0.5). images: the first dimension is that of the images of a batch."""
    if not images:
        return _uniform(shape, device)
    return draw_for_images(lambda count: _uniform(torch.Size((count, *shape[1:])), device), shape[0])


def _uniform(shape: torch.Size, device: torch.device) -> Tensor:
    """Return one of 2^16 equidistant numbers in (-0.5, 0.5) for each element.

    Four are cut from each random number of 64 bits, which takes a third of the time of `torch.rand`.
    """
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    return words.view(torch.int16)[: shape.numel()].reshape(shape).float().add_(0.5).div_(2**16)


def _spread(scale: Tensor, x: Tensor) -> Tensor:
    """Return a scale of shape () or (x.shape[0],) in a shape that broadcasts to x."""
    return scale if scale.dim() == 0 else scale.reshape(-1, *[1] * (x.dim() - 1))


def _range(signed: bool) -> tuple[float, float]:
    """Return the range of a tensor in units of its largest value."""
    return (-1.0 if signed else 0.0), 1.0


@torch.library.custom_op("vitslim::add_noise", mutates_args=())
def add_noise(
    x: Tensor,
    high: Tensor,
    top: Tensor,
    signed: bool,
    empirical: bool,
    mask: Tensor | None = None,
    images: bool = False,
) -> Tensor:
    """Clip a tensor to its range and add noise of one quantization step, `high / top`, to the elements inside.

    x: float, any shape. high: float, positive, () or (x.shape[0],); the range is [-high, high], or [0, high] if not
    `signed`. top: float (), the largest integer. empirical: noise with the distribution of the rounding errors; else
    uniform. mask: bool, of the shape of x; elements where it is False get no noise. images: x is an activation, with
    one row for each image of the batch.
    """
    ceiling = _spread(high, x)
    step = ceiling / top
    if empirical:
        counted = where_inside(torch.ones_like(x), x / ceiling, *_range(signed)).bool()
        noise = rounding_error_noise(x, step, counted if mask is None else counted & mask, images)
    else:
        noise = uniform_noise(x.shape, x.device, images).to(x.dtype)
    if mask is not None:
        noise.mul_(mask)
    floor = -ceiling if signed else torch.zeros_like(ceiling)
    for part, noise_part in in_parts(x, noise, whole=high.dim() > 0):
        inside = where_inside(noise_part, part / ceiling, *_range(signed))
        torch.addcmul(torch.clamp(part, floor, ceiling), inside, step, out=noise_part)
    return noise


@add_noise.register_fake
def _fake(
    x: Tensor,
    high: Tensor,  # noqa: ARG001
    top: Tensor,  # noqa: ARG001
    signed: bool,  # noqa: ARG001
    empirical: bool,  # noqa: ARG001
    mask: Tensor | None = None,  # noqa: ARG001
    images: bool = False,  # noqa: ARG001
) -> Tensor:
    return torch.empty_like(x)


def noise_gradients(
    gradient: Tensor, x: Tensor, noisy: Tensor, high: Tensor, top: Tensor, signed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, high and top for fixed draws of the noise, each in the shape of its tensor.

    noisy: the result of `add_noise`. Inside the range x passes its gradient, high gets `noise / top` and top gets
    `-noise * high / top^2`, with noise in units of the step; outside x and top get none and high gets the sign of x.
    """
    passed, per_channel = torch.empty_like(x), high.dim() > 0
    clipped, spread = torch.zeros_like(high), torch.zeros_like(high)
    for *parts, out in in_parts(x, noisy, gradient, passed, whole=per_channel):
        part, noisy_part, incoming = (widened(one) for one in parts)
        inside = where_inside(incoming, part / _spread(high, x), *_range(signed))
        clipped += _sum_of_products(incoming - inside, noisy_part, per_channel)
        spread += _sum_of_products(inside, noisy_part - part, per_channel)
        out.copy_(inside)
    return passed, (clipped + spread) / high, -spread.sum() / top


def _sum_of_products(x: Tensor, y: Tensor, per_channel: bool) -> Tensor:
    """Return the sum of the elementwise product: (), or (x.shape[0],) per channel."""
    return (x * y).flatten(start_dim=1).sum(dim=1) if per_channel else torch.dot(x.reshape(-1), y.reshape(-1))


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor) -> None:
    x, high, top, signed, *_ = inputs
    # The noise is the difference of result and input, which other operators keep anyway.
    ctx.save_for_backward(x, output, high, top)  # type: ignore[arg-type]
    ctx.signed = signed  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, noisy, high, top = ctx.saved_tensors  # type: ignore[attr-defined]
    return (*noise_gradients(gradient, x, noisy, high, top, ctx.signed), None, None, None, None)  # type: ignore[attr-defined]


add_noise.register_autograd(_backward, setup_context=_setup_context)


def pseudo_quant(  # noqa: PLR0913, PLR0917 - an operator takes tensors and numbers, no classes
    x: Tensor,
    range_parameter: Tensor,
    bits_parameter: Tensor,
    low: float,
    high: float,
    signed: bool,
    stochastic: bool,
    empirical: bool,
    mask: Tensor | None = None,
    images: bool = False,
) -> Tensor:
    """Return x with the noise of quantization at its learned range and bits; same shape and dtype.

    range_parameter: float, () or (x.shape[0],); its softplus is the largest value of the range. bits_parameter: float
    (); see `learned_bits`. low, high: the smallest and the largest number of bits. stochastic: round the bits up or
    down at random, else to the nearest integer. signed, empirical, mask, images: as `add_noise`.
    """
    bits = learned_bits(bits_parameter, low, high)
    whole = sampled_bits(bits, low, high) if stochastic else round_straight(bits)
    top = levels(whole, signed)
    noisy: Tensor = add_noise(x, functional.softplus(range_parameter), top, signed, empirical, mask, images)
    return noisy


def _register() -> Library:
    library = Library("vitslim", "FRAGMENT")  # type: ignore[no-untyped-call]
    signature = (
        "pseudo_quant(Tensor x, Tensor range_parameter, Tensor bits_parameter, float low, float high, bool signed, "
        "bool stochastic, bool empirical, Tensor? mask=None, bool images=False) -> Tensor"
    )
    library.define(signature)  # type: ignore[no-untyped-call]
    library.impl("pseudo_quant", pseudo_quant, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    return library


_LIBRARY = _register()
"""The operator stays registered as long as this object exists."""

PSEUDO_QUANT = torch.ops.vitslim.pseudo_quant.default

START_BITS = 0.0
"""Initial bits parameter: the middle of the range."""

UNIT_RANGE = math.log(math.e - 1)
"""Range parameter of a range that ends at 1."""
