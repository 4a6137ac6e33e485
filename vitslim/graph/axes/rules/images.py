"""Operators on images: pooling, interpolation, extraction of patches and its inverse, and pixel shuffles."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from vitslim.graph.axes.scope import Rule, Scope
from vitslim.graph.axes.terms import Dims, product, size

IN_PATCH = "is a position in a patch"


def resampled(scope: Scope, node: Node) -> Dims:
    """Pooling and interpolation over all dimensions after the channels."""
    x, shape = scope.of(node.args[0]), scope.shape(node)
    scope.freeze(x[2:], "is a position in an image that is resampled")
    places = scope.fresh(shape[2:], "is a position in the image")
    for old, new in zip(x[2:], places, strict=True):
        scope.set_kind(new, "tokens")
        if size(old) == size(new):
            scope.tie(old, new)
    return (*x[:2], *places)


def patches(scope: Scope, node: Node) -> Dims:
    """im2col: (B, C, H, W) to (B, C * kernel, patches)."""
    (x,) = scope.operands(node, "self")
    scope.freeze(x[2:], "is a position in an image that is cut into patches")
    kernel = scope.fresh([int(length) for length in scope.value(node, "kernel_size")], IN_PATCH)
    (count,) = scope.fresh(scope.shape(node)[2:], "is a patch position")
    return (x[0], product((x[1], *kernel)), count)


def from_patches(scope: Scope, node: Node) -> Dims:
    """col2im: (B, C * kernel, patches) to (B, C, H, W)."""
    (x,) = scope.operands(node, "self")
    shape = scope.shape(node)
    channels, kernel = scope.terms.factor(x[1], shape[1])
    scope.freeze((kernel, x[2]), IN_PATCH)
    return (x[0], channels, *scope.fresh(shape[2:], "is a position in the image"))


def windows(scope: Scope, node: Node) -> Dims:
    """unfold: windows that slide along one dimension; a new last dimension holds the positions in a window."""
    (x,) = scope.operands(node, "self")
    dim = scope.dim(node, len(x), "dimension")
    scope.freeze((x[dim],), "is a position that a window slides over")
    shape = scope.shape(node)
    count, inside = scope.fresh((shape[dim], shape[-1]), "is a position in a window")
    return (*x[:dim], count, *x[dim + 1 :], inside)


def pixel_shuffle(scope: Scope, node: Node) -> Dims:
    """(B, C * r * r, H, W) to (B, C, H * r, W * r)."""
    (x,) = scope.operands(node, "self")
    factor = int(scope.value(node, "upscale_factor"))
    channels, inner = scope.terms.factor(x[-3], scope.shape(node)[-3])
    rows, columns = scope.terms.factor(inner, factor)
    scope.freeze((rows, columns), IN_PATCH)
    return (*x[:-3], channels, product((x[-2], rows)), product((x[-1], columns)))


def pixel_unshuffle(scope: Scope, node: Node) -> Dims:
    """(B, C, H * r, W * r) to (B, C * r * r, H, W)."""
    (x,) = scope.operands(node, "self")
    factor = int(scope.value(node, "downscale_factor"))
    height, rows = scope.terms.factor(x[-2], size(x[-2]) // factor)
    width, columns = scope.terms.factor(x[-1], size(x[-1]) // factor)
    scope.freeze((rows, columns), IN_PATCH)
    return (*x[:-3], product((x[-3], rows, columns)), height, width)


def channel_shuffle(scope: Scope, node: Node) -> Dims:
    """Channels of all groups are interleaved."""
    (x,) = scope.operands(node, "self")
    group, inner = scope.terms.factor(x[1], int(scope.value(node, "groups")))
    scope.size(node, "groups", group)
    return (x[0], product((inner, group)), *x[2:])


RESAMPLING = (
    *(f"{kind}_pool{rank}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max", "lp") for rank in (1, 2, 3)),
    *(f"upsample_nearest{rank}d" for rank in (1, 2, 3)),
    "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d",
    "_upsample_bicubic2d_aa", "upsample_trilinear3d",
)  # fmt: skip

RULES: dict[Any, Rule] = {
    "aten.im2col": patches,
    "aten.col2im": from_patches,
    "aten.unfold": windows,
    "aten.pixel_shuffle": pixel_shuffle,
    "aten.pixel_unshuffle": pixel_unshuffle,
    "aten.channel_shuffle": channel_shuffle,
    "aten.native_channel_shuffle": channel_shuffle,
    **{f"aten.{name}": resampled for name in RESAMPLING},
}
