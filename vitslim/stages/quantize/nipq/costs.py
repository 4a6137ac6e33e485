"""Costs of a model as differentiable functions of bits, and the loss terms that pull bits to a limit.

Bits are a float tensor (n,), one entry for each quantized tensor. Source of `AverageBits` and `BitOperations`: NIPQ
(Shin et al., CVPR 2023); the other two costs are extensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from vitslim.graph.edits.read_pixels import PIXEL_BITS
from vitslim.sparsity import PAIR_BITS
from vitslim.units import FLOAT_BITS

ELEMENTS_UNIT = 2.0**23
"""Elements times bits that give a loss of 1."""
BIT_OPERATIONS_WEIGHT = 3.0
"""Weight of the loss of 10^9 bit operations."""
NARROW, WIDE = 4, 8
"""Bits of the containers of integers."""


class Cost(Protocol):
    """A cost and its limit."""

    @property
    def limit(self) -> float:
        """Largest allowed cost."""
        ...

    def __call__(self, bits: Tensor) -> Tensor:
        """Return the cost of bits (n,), a scalar with a gradient; between deployed widths it is interpolated."""
        ...

    def deployed(self, widths: Tensor) -> float:
        """Return the cost of whole numbers of bits as a file stores them."""
        ...

    def penalty(self, bits: Tensor) -> Tensor:
        """Return the loss term that pulls bits (n,) to the limit: a scalar."""
        ...


@dataclass(frozen=True)
class AverageBits:
    """Average bits, weighted by elements."""

    elements: Tensor
    """Float (n,); 0 for tensors that do not count."""
    limit: float

    def __call__(self, bits: Tensor) -> Tensor:
        """Return the average."""
        elements = self.elements.to(bits)
        return (elements * bits).sum() / elements.sum()

    def deployed(self, widths: Tensor) -> float:
        """Return the average."""
        return float(self(widths.double()))

    def penalty(self, bits: Tensor) -> Tensor:
        """Return SmoothL1 between the sum of bits and that of the limit, in units of 2^23."""
        elements = self.elements.to(bits)
        found, allowed = (elements * bits).sum(), self.limit * elements.sum()
        return functional.smooth_l1_loss(found, allowed) / ELEMENTS_UNIT


@dataclass(frozen=True)
class Gemms:
    """The matmuls of a model. Operands are positions in the bits; n is a float operand, n + 1 one of 8-bit pixels."""

    left: Tensor
    """int64 (m,)."""
    right: Tensor
    """int64 (m,), weights where the matmul has one."""
    tensors: int
    """The number n of quantized tensors."""

    def operand_bits(self, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bits of both operands of each matmul: float (m,) each."""
        known = torch.cat([bits, bits.new_tensor([FLOAT_BITS, PIXEL_BITS])])
        return known[self.left.to(bits.device)], known[self.right.to(bits.device)]


@dataclass(frozen=True)
class BitOperations:
    """10^9 bit operations for one image: MACs times the bits of both operands."""

    gemms: Gemms
    macs: Tensor
    """Float (2, m): with both operands of at most PAIR_BITS bits, and else; a 2:4 pattern halves the MACs of one."""
    limit: float

    def __call__(self, bits: Tensor) -> Tensor:
        """Return the bit operations."""
        left, right = self.gemms.operand_bits(bits)
        macs = self.macs.to(bits)
        is_narrow = torch.maximum(left, right) <= PAIR_BITS
        return (torch.where(is_narrow, macs[0], macs[1]) * left * right).sum() / 1e9

    def deployed(self, widths: Tensor) -> float:
        """Return the bit operations."""
        return float(self(widths.double()))

    def penalty(self, bits: Tensor) -> Tensor:
        """Return 3 SmoothL1 between the bit operations and their limit."""
        found = self(bits)
        return BIT_OPERATIONS_WEIGHT * functional.smooth_l1_loss(found, torch.full_like(found, self.limit))


class _InContainers(ABC):
    """A cost of containers of 4 and 8 bits."""

    limit: float

    @abstractmethod
    def __call__(self, bits: Tensor) -> Tensor:
        """Return the cost."""

    def deployed(self, widths: Tensor) -> float:
        """Return the cost of the containers."""
        return float(self(whole_container(widths).double()))

    def penalty(self, bits: Tensor) -> Tensor:
        """Return the relative distance from the limit."""
        return (self(bits) / self.limit - 1).abs()


@dataclass(frozen=True)
class StoredSize(_InContainers):
    """10^6 bytes of all parameters as a file stores them."""

    elements: Tensor
    """Float (n,): elements of weights; 0 for activations."""
    other_mb: float
    """All that bits do not change: scales, biases, and layers in float."""
    limit: float

    def __call__(self, bits: Tensor) -> Tensor:
        """Return the size."""
        return (self.elements.to(bits) * container(bits)).sum() / 8e6 + self.other_mb


@dataclass(frozen=True)
class Latency(_InContainers):
    """Latency of all matmuls as a fraction of that in 16-bit floats; the wider operand determines the precision."""

    gemms: Gemms
    us: Tensor
    """Float (3, m): microseconds with operands of 4, 8 and 16 bits."""
    limit: float

    def __call__(self, bits: Tensor) -> Tensor:
        """Return the fraction."""
        widest = torch.maximum(*self.gemms.operand_bits(bits))
        narrow, wide, floats = self.us.to(bits)
        integer = narrow + (wide - narrow) * (container(widest) - NARROW) / (WIDE - NARROW)
        fraction: Tensor = torch.where(widest > WIDE, floats, integer).sum() / floats.sum()
        return fraction


def container(bits: Tensor) -> Tensor:
    """Return the bits that are stored: at least 4, and up to 8 interpolated."""
    return bits.clamp(NARROW, WIDE)


def whole_container(widths: Tensor) -> Tensor:
    """Return the bits of the container of each width, 4 or 8."""
    return torch.where(widths <= NARROW, torch.full_like(widths, NARROW), torch.full_like(widths, WIDE))


def total_penalty(costs: Sequence[Cost], bits: Tensor) -> Tensor:
    """Return the sum of the penalties of bits (n,)."""
    total: Tensor = bits.new_zeros(())
    for cost in costs:
        total = total + cost.penalty(bits)
    return total
