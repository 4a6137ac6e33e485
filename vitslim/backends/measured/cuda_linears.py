"""Linear layers as a GPU multiplies them: INT8 by cuBLAS, 2:4 weights by cuSPARSELt.

What comes before and after an integer product (quantising; scaling, adding the bias) is one fused kernel each on a GPU:
operation by operation it would take longer than the product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitslim.backends.measured.cuda_gemms import ROWS_MULTIPLE

MULTIPLE = 8
"""Inputs and outputs are filled up to a multiple of this, which `torch._int_mm` asks for."""
UNSIGNED_SHIFT = 128
"""What unsigned codes lose to become signed ones."""


class Int8Linear(nn.Module):
    """A linear layer in integers: quantise, multiply, scale, add the bias, in which zero points are folded."""

    codes: Tensor
    step: Tensor
    zero_point: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        step: Tensor,
        zero_point: int,
        limits: tuple[int, int],
        bias: Tensor | None,
        factor: Tensor | None = None,
    ) -> None:
        """codes: int8 (out, in), of step sizes `scale`, float (out,). step (), zero_point and limits: of the input,
        which is multiplied by `factor` (in,) first."""
        super().__init__()
        shift = UNSIGNED_SHIFT if limits[0] >= 0 else 0
        self.limits = (limits[0] - shift, limits[1] - shift)
        self.outputs, self.filling = len(codes), (-codes.shape[1] % MULTIPLE, -len(codes) % MULTIPLE)
        codes = functional.pad(codes, (0, self.filling[0], 0, self.filling[1]))
        product = functional.pad(scale.float() * step.float(), (0, self.filling[1]))
        sums = codes.sum(dim=1, dtype=torch.float32)
        plain = functional.pad(bias.float(), (0, self.filling[1])) if bias is not None else torch.zeros_like(sums)
        moved = float(zero_point - shift)
        steps = step.float() if factor is None else step.float() / factor.float()
        for name, tensor in (("codes", codes), ("step", steps), ("zero_point", torch.tensor(moved)),
                             ("scale", product), ("bias", plain - moved * sums * product)):  # fmt: skip
            self.register_buffer(name, tensor)
        self.product: SparseProduct | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the type of x."""
        rows = x.flatten(end_dim=-2)
        filling = (self.filling[0], -len(rows) % ROWS_MULTIPLE)
        codes = _kernel(_quantised, x.device)(rows, self.step, self.zero_point, self.limits, filling)
        if self.product is not None:
            product, scale = self.product(codes, alpha=self.scale, out_dtype=torch.float16), None
        else:
            product, scale = torch._int_mm(codes, self.codes.t()), self.scale
        result = _kernel(_finished, x.device)(product[: len(rows)], scale, self.bias, x.dtype)
        return result[:, : self.outputs].reshape(*x.shape[:-1], -1)

    def pack(self) -> None:
        """Multiply by the 2:4 weight in the form of cuSPARSELt from now on. Needs a GPU, and the layer on it."""
        self.product = SparseProduct(self.codes)


class TwoFourLinear(nn.Module):
    """A linear layer in FP16 with a 2:4 weight, in the form of cuSPARSELt once it is packed."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: float (out, in). bias: float (out,)."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.product: SparseProduct | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the type of x."""
        if self.product is None:
            return functional.linear(x, self.weight, self.bias)
        rows = x.flatten(end_dim=-2)
        filled = functional.pad(rows, (0, 0, 0, -len(rows) % ROWS_MULTIPLE))
        result = self.product(filled, bias=self.bias)[: len(rows)]
        return result.contiguous().reshape(*x.shape[:-1], -1)

    def pack(self) -> None:
        """Multiply by cuSPARSELt from now on. Needs a GPU, and the layer on it."""
        self.product = SparseProduct(self.weight)


class SparseProduct:
    """Products of a 2:4 weight (out, in) with rows (n, in). Needs a GPU."""

    def __init__(self, weight: Tensor) -> None:
        self._packed = torch._cslt_compress(weight)

    def __call__(self, rows: Tensor, **keys: Any) -> Tensor:
        """(n, out), column by column in memory; keys as `torch._cslt_sparse_mm` takes them.

        `transpose_result` would write it row by row, and compile a kernel for that at every call: 0.16 s on an H200,
        minutes for a model.
        """
        return torch._cslt_sparse_mm(self._packed, rows.contiguous().t(), **keys).t()


def _quantised(
    rows: Tensor, step: Tensor, zero_point: Tensor, limits: tuple[int, int], filling: tuple[int, int]
) -> Tensor:
    codes = ((rows.float() / step).round() + zero_point).clamp(*limits).to(torch.int8)
    return functional.pad(codes, (0, filling[0], 0, filling[1]))


def _finished(product: Tensor, scale: Tensor | None, bias: Tensor, kind: torch.dtype) -> Tensor:
    scaled = product.float() if scale is None else product * scale
    return (scaled + bias).to(kind)


def _kernel(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """The function itself on a CPU, one fused kernel for it on a GPU."""
    return _fused(function) if device.type == "cuda" else function


@cache
def _fused(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=True)
