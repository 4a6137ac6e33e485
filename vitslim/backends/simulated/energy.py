"""Energy of arithmetic, SRAM and DRAM accesses, from one named table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from pydantic import ConfigDict

from vitslim.backends.simulated.settings import Settings, packaged
from vitslim.errors import UsageError
from vitslim.results import Energy

TABLES = "energy.yaml"
WORD_BITS = 64


class EnergyTable(Settings):
    """One table of `energy.yaml`, in picojoules."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    node: str
    source: str
    mac_pj: dict[int, float]
    sram_pj: dict[int, float]
    dram_pj: float
    assumed: tuple[str, ...]

    def mac(self, bits: int) -> float:
        """Picojoules of a multiply-accumulate. Raises UsageError for a width that the table does not have."""
        width = min((known for known in self.mac_pj if known >= bits), default=None)
        if width is None:
            known = ", ".join(map(str, self.mac_pj))
            raise UsageError(
                f"the energy table has no {bits}-bit multiply", f"set `bits` to {known}, or another `energy`"
            )
        return self.mac_pj[width]

    def sram(self, kilobytes: float) -> float:
        """Picojoules to read or write 64 bits in a memory of this size."""
        sizes = sorted(self.sram_pj)
        logs = np.log([self.sram_pj[size] for size in sizes])
        return float(np.exp(np.interp(np.log(kilobytes), np.log(sizes), logs)))


@dataclass(frozen=True)
class Work:
    """Energy-relevant work of a GEMM or a model."""

    macs: float
    """Executed MACs: half of the dense ones where 2:4 is used."""
    activation_bits: float
    """SRAM traffic of each buffer."""
    weight_bits: float
    output_bits: float
    dram_bits: float


@cache
def load_table(name: str) -> EnergyTable:
    """Return a packaged table."""
    return EnergyTable.model_validate(packaged(__package__, TABLES)[name])


def parts_pj(work: Work, table: EnergyTable, mac_bits: int, sram_kb: tuple[int, int, int]) -> dict[str, float]:
    """Return picojoules of arithmetic, of the three buffers (inputs, weights, outputs) and of DRAM."""
    ifmap, kernel, ofmap = (table.sram(size) / WORD_BITS for size in sram_kb)
    return {
        "compute": work.macs * table.mac(mac_bits),
        "sram inputs": work.activation_bits * ifmap,
        "sram weights": work.weight_bits * kernel,
        "sram outputs": work.output_bits * ofmap,
        "dram": work.dram_bits * table.dram_pj / WORD_BITS,
    }


def energy_of(name: str, table: EnergyTable, parts: dict[str, float], mac_bits: int) -> Energy:
    """Return the energy of a model from the picojoules of its parts."""
    return Energy(
        table=name,
        node=table.node,
        source=table.source,
        parts_mj={part: value / 1e9 for part, value in parts.items()},
        mac_pj=table.mac(mac_bits),
        dram_pj_per_bit=table.dram_pj / WORD_BITS,
        assumed=table.assumed,
    )
