"""Comparison of the maps of two models, batch by batch: all maps of a data set would not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from vitslim.tasks import MAP_SQNR
from vitslim.training.tasks.embeddings import cosines


class MapComparison:
    """Adds up cosine similarities and the powers of signal and noise."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names`: of the outputs, in order."""
        self._cosines = dict.fromkeys(names, 0.0)
        self._signal, self._noise = dict.fromkeys(self._cosines, 0.0), dict.fromkeys(self._cosines, 0.0)
        self._images = 0

    def add(self, dense: Iterable[Tensor], found: Iterable[Tensor]) -> None:
        """Add the outputs of the dense and of another model on a batch: one float tensor (b, ...) for each output."""
        count = 0
        for name, expected, other in zip(self._cosines, dense, found, strict=True):
            rows, others = expected.flatten(start_dim=1), other.flatten(start_dim=1)
            count = len(rows)
            self._cosines[name] += cosines(rows, others).sum().item()
            self._signal[name] += rows.double().square().sum().item()
            self._noise[name] += (rows.double() - others.double()).square().sum().item()
        self._images += count

    def scores(self) -> dict[str, float]:
        """Return `cosine`, the mean over images and outputs, and the SQNR of each output in dB, unless infinite."""
        found = {"cosine": math.fsum(self._cosines.values()) / (len(self._cosines) * self._images)}
        for name, signal in self._signal.items():
            if signal > 0 and self._noise[name] > 0:
                found[MAP_SQNR + name] = 10 * math.log10(signal / self._noise[name])
        return found
