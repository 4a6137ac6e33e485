"""Linear layers with GPU kernels: INT8 GEMMs by cuBLAS or Triton, 2:4 GEMMs by cuSPARSELt.

Quantization before an integer GEMM, and scaling and bias after it, are left to the compiler, which fuses them with
neighboring operators: run one by one they would take longer than the GEMM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitslim.backends.measured.cuda.gemm_timing import ROWS_MULTIPLE

MULTIPLE = 8
"""Inputs and outputs are padded to a multiple of this, as `torch._int_mm` requires."""
UNSIGNED_SHIFT = 128
"""Difference between unsigned and signed 8-bit integers."""


class Int8Linear(nn.Module):
    """A linear layer in INT8: quantize, multiply, scale, add the bias, which contains the zero point."""

    integers: Tensor
    input_scale: Tensor
    zero_point: Tensor
    scale: Tensor
    bias: Tensor
    packed: Tensor | None

    def __init__(
        self,
        integers: Tensor,
        scale: Tensor,
        input_scale: Tensor,
        zero_point: int,
        limits: tuple[int, int],
        bias: Tensor | None,
        factor: Tensor | None = None,
    ) -> None:
        """integers: int8 (out, in), with scales `scale`, float (out,). input_scale (), zero_point and limits: of the
        input, which is multiplied by `factor` (in,) first. bias: float (out,)."""
        super().__init__()
        shift = UNSIGNED_SHIFT if limits[0] >= 0 else 0
        self.limits = (limits[0] - shift, limits[1] - shift)
        self.outputs, self.padding = len(integers), (-integers.shape[1] % MULTIPLE, -len(integers) % MULTIPLE)
        integers = functional.pad(integers, (0, self.padding[0], 0, self.padding[1]))
        output_scale = functional.pad(scale.float() * input_scale.float(), (0, self.padding[1]))
        sums = integers.sum(dim=1, dtype=torch.float32)
        plain = functional.pad(bias.float(), (0, self.padding[1])) if bias is not None else torch.zeros_like(sums)
        offset = float(zero_point - shift)
        scales = input_scale.float() if factor is None else input_scale.float() / factor.float()
        for name, tensor in (("integers", integers), ("input_scale", scales), ("zero_point", torch.tensor(offset)),
                             ("scale", output_scale), ("bias", plain - offset * sums * output_scale)):  # fmt: skip
            self.register_buffer(name, tensor)
        self.register_buffer("packed", None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in the dtype of x."""
        rows = x.flatten(end_dim=-2)
        values = ((rows.float() / self.input_scale).round() + self.zero_point).clamp(*self.limits).to(torch.int8)
        values = functional.pad(values, (0, self.padding[0], 0, -len(rows) % ROWS_MULTIPLE))
        if self.packed is None:
            scaled = torch._int_mm(values, self.integers.t()) * self.scale
        else:
            scaled = two_four_gemm(self.packed, values, len(self.integers), None, self.scale).t().float()
        result = (scaled + self.bias).to(x.dtype)
        return result[: len(rows), : self.outputs].reshape(*x.shape[:-1], -1)

    def pack(self) -> None:
        """Compress the 2:4 weight for cuSPARSELt, which multiplies from now on. The layer must be on a GPU."""
        self.packed = torch._cslt_compress(self.integers)


class TwoFourLinear(nn.Module):
    """A linear layer in FP16 with a 2:4 weight; cuSPARSELt multiplies after `pack`."""

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
        """Map (..., in) to (..., out), in the dtype of x."""
        if self.packed is None:
            return functional.linear(x, self.weight, self.bias)
        rows = x.flatten(end_dim=-2)
        padded = functional.pad(rows, (0, 0, 0, -len(rows) % ROWS_MULTIPLE))
        result: Tensor = two_four_gemm(self.packed, padded, len(self.weight), self.bias, None).t()
        return result[: len(rows)].reshape(*x.shape[:-1], -1)

    def pack(self) -> None:
        """Compress the weight for cuSPARSELt, which multiplies from now on. The layer must be on a GPU."""
        self.packed = torch._cslt_compress(self.weight)


@torch.library.custom_op("vitslim::two_four_gemm", mutates_args=())
def two_four_gemm(
    packed: Tensor,
    rows: Tensor,
    outputs: int,  # noqa: ARG001
    bias: Tensor | None,
    alpha: Tensor | None,
) -> Tensor:
    """Multiply a packed 2:4 weight (outputs, in) by rows (n, in); return the transposed result, FP16 (outputs, n).

    Needs a GPU. bias: FP16 (outputs,), for rows in FP16. alpha: float (outputs,), the output scale of INT8 GEMMs.
    A custom operator, because the compiler cannot infer the shape of the result from a packed weight. PyTorch's
    `transpose_result` is not used: it compiles a kernel at every call.
    """
    kind = torch.float16 if rows.dtype == torch.int8 else None
    return torch._cslt_sparse_mm(packed, rows.contiguous().t(), bias=bias, alpha=alpha, out_dtype=kind)


@two_four_gemm.register_fake
def _(packed: Tensor, rows: Tensor, outputs: int, bias: Tensor | None, alpha: Tensor | None) -> Tensor:  # noqa: ARG001
    return rows.new_empty(outputs, len(rows), dtype=torch.float16)
