"""Energy of SpAtten at 40 nm: static power of the chip, operations, and DRAM transfers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitslim.backends.simulated.simulator import Floats
from vitslim.backends.simulated.spatten.spec import SpattenSpec
from vitslim.results import Energy

TABLE = "spatten40"
NODE = "40 nm"
SOURCE = "power of compute and SRAM at the published throughput (HPCA 2021); HBM2 3.9 pJ/bit (O'Connor, MICRO 2017)"
ASSUMED = ("energy.static_share",)


@dataclass(frozen=True)
class EnergyParts:
    """Millijoules of compute, SRAM and DRAM; float64 arrays of one shape."""

    compute: Floats
    sram: Floats
    dram: Floats

    @property
    def total(self) -> Floats:
        """Sum of the parts."""
        return self.compute + self.sram + self.dram

    def energy(self, spec: SpattenSpec) -> Energy:
        """Return the sum over all items as the energy of a model."""
        parts = {"compute": self.compute, "sram": self.sram, "dram": self.dram}
        dynamic = 1 - spec.energy.static_share
        return Energy(
            table=TABLE, node=NODE, source=SOURCE,
            parts_mj={name: float(value.sum()) for name, value in parts.items()},
            mac_pj=2 * dynamic * spec.energy.compute_w / spec.energy.at_tflops,
            dram_pj_per_bit=spec.energy.dram_pj_per_bit, assumed=ASSUMED,
        )  # fmt: skip


def energy_parts(cycles: Floats, flops: Floats, dram_bytes: Floats, spec: SpattenSpec) -> EnergyParts:
    """Return the energy of work that takes `cycles`; arrays of one shape.

    At the reference throughput compute and SRAM spend their published power, of which `static_share` is spent in every
    cycle and the rest follows the operations.
    """
    power = spec.energy
    seconds = cycles / (spec.clock_ghz * 1e9)
    work = flops / (power.at_tflops * 1e12)
    share = power.static_share * seconds + (1 - power.static_share) * work
    dram = 8 * dram_bytes * power.dram_pj_per_bit / 1e9
    return EnergyParts(power.compute_w * share * 1e3, power.sram_w * share * 1e3, np.asarray(dram, np.float64))
