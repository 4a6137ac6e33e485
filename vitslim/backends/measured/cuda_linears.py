"""Linear layers as a GPU multiplies them: INT8 by cuBLAS or Triton, 2:4 weights by cuSPARSELt.

What comes before and after an integer product (quantizing; scaling, adding the bias) is left to the compiler, which
makes one kernel of it and of its neighbors: operation by operation it would take longer than the product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitslim.backends.measured.cuda_gemms import ROWS_MULTIPLE

MULTIPLE = 8
"""Inputs and outputs are filled up to a multiple of this, which `torch._int_mm` asks for."""
UNSIGNED_SHIFT = 128
"""What unsigned codes lose to become signed ones."""


class Int8Linear(nn.Module):
    """A linear layer in integers: quantize, multiply, scale, add the bias, in which zero points are folded."""

    codes: Tensor
    step: Tensor
    zero_point: Tensor
    scale: Tensor
    bias: Tensor
    packed: Tensor | None

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
        self.register_buffer("packed", None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the type of x."""
        rows = x.flatten(end_dim=-2)
        codes = ((rows.float() / self.step).round() + self.zero_point).clamp(*self.limits).to(torch.int8)
        codes = functional.pad(codes, (0, self.filling[0], 0, -len(rows) % ROWS_MULTIPLE))
        if self.packed is None:
            scaled = torch._int_mm(codes, self.codes.t()) * self.scale
        else:
            scaled = two_four_product(self.packed, codes, len(self.codes), None, self.scale).t().float()
        result = (scaled + self.bias).to(x.dtype)
        return result[: len(rows), : self.outputs].reshape(*x.shape[:-1], -1)

    def pack(self) -> None:
        """Multiply by the 2:4 weight in the form of cuSPARSELt from now on. Needs a GPU, and the layer on it."""
        self.packed = torch._cslt_compress(self.codes)


class TwoFourLinear(nn.Module):
    """A linear layer in FP16 with a 2:4 weight, in the form of cuSPARSELt once it is packed."""

    weight: Tensor
    bias: Tensor | None
    packed: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: float (out, in). bias: float (out,)."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("packed", None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the type of x."""
        if self.packed is None:
            return functional.linear(x, self.weight, self.bias)
        rows = x.flatten(end_dim=-2)
        filled = functional.pad(rows, (0, 0, 0, -len(rows) % ROWS_MULTIPLE))
        product: Tensor = two_four_product(self.packed, filled, len(self.weight), self.bias, None).t()
        return product[: len(rows)].reshape(*x.shape[:-1], -1)

    def pack(self) -> None:
        """Multiply by cuSPARSELt from now on. Needs a GPU, and the layer on it."""
        self.packed = torch._cslt_compress(self.weight)


@torch.library.custom_op("vitslim::two_four_product", mutates_args=())
def two_four_product(
    packed: Tensor,
    rows: Tensor,
    outputs: int,  # noqa: ARG001
    bias: Tensor | None,
    alpha: Tensor | None,
) -> Tensor:
    """A packed 2:4 weight (outputs, in) times rows (n, in), transposed: FP16 (outputs, n). Needs a GPU.

    bias: FP16 (outputs,), for rows in FP16. alpha: float (outputs,), by which products of int8 are multiplied.
    An operator of its own, since the compiler must know the shape of a result, and a packed weight does not tell it.
    `transpose_result` of PyTorch's would transpose it back, and compile a kernel for that at every call: 0.16 s on an
    H200, minutes for a model.
    """
    kind = torch.float16 if rows.dtype == torch.int8 else None
    return torch._cslt_sparse_mm(packed, rows.contiguous().t(), bias=bias, alpha=alpha, out_dtype=kind)


@two_four_product.register_fake
def _(packed: Tensor, rows: Tensor, outputs: int, bias: Tensor | None, alpha: Tensor | None) -> Tensor:  # noqa: ARG001
    return rows.new_empty(outputs, len(rows), dtype=torch.float16)
