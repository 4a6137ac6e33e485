"""Settings of the systolic target, from the packaged file or a user's, with changed keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from vitslim.backends.simulated.settings import Positive, Settings, merged, packaged, read_settings, validated

Dataflow = Literal["ws", "os", "is"]
PACKAGED = "systolic.yaml"


class VectorPasses(Settings):
    """Number of passes of an element through a lane of the vector unit."""

    softmax: PositiveInt
    norm: PositiveInt
    gelu: PositiveInt
    add: PositiveInt


class VectorUnit(Settings):
    """The unit that runs everything but GEMMs."""

    lanes: PositiveInt | Literal["columns"]
    passes: VectorPasses


class Sram(Settings):
    """Size of the three buffers in kilobytes (1024); half of each is filled while the other half is read."""

    ifmap: PositiveInt
    filter: PositiveInt
    ofmap: PositiveInt


class Bits(Settings):
    """Widths of activations, weights, partial sums and results."""

    act: Annotated[int, Field(ge=1, le=64)]
    weight: Annotated[int, Field(ge=1, le=64)]
    acc: Annotated[int, Field(ge=1, le=64)]
    out: Annotated[int, Field(ge=1, le=64)]


class SystolicSpec(Settings):
    """One systolic array; `systolic.yaml` describes every key and gives the source of its value."""

    array: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]
    dataflow: Dataflow
    overlap: Literal["none", "double_buffer"]
    counters: Literal["clean", "scalesim"]
    sparsity: Literal["layer", "row", "off"]
    pattern: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]
    clock_ghz: Positive
    sram_kb: Sram
    dram_gbps: Positive
    bits: Bits
    energy: Literal["horowitz45", "jouppi7", "stc45", "zigzag", "none"]
    vector: VectorUnit

    @property
    def uses_two_four(self) -> bool:
        """Whether the array skips the zeros of 2:4 weights: it is weight stationary, and its N:M pattern allows 2:4."""
        kept, size = self.pattern
        return self.sparsity != "off" and self.dataflow == "ws" and size % 4 == 0 and 2 * kept >= size > kept

    @property
    def lanes(self) -> int:
        """Lanes of the vector unit."""
        return self.array[1] if self.vector.lanes == "columns" else self.vector.lanes

    @property
    def bytes_per_cycle(self) -> float:
        """DRAM bandwidth in bytes per cycle."""
        return self.dram_gbps / self.clock_ghz


def load_spec(overrides: Mapping[str, Any] | None = None, path: Path | None = None) -> SystolicSpec:
    """Return the packaged settings or those of a file, with some keys replaced; nested mappings are merged.

    Raises InputError for a file that is missing or not a YAML mapping, UsageError for unknown keys and invalid values.
    """
    base = packaged(__package__, PACKAGED)
    own = {key: value for key, value in (read_settings(path) if path else {}).items() if key != "target"}
    values = merged(merged(base, own), overrides or {})
    where = str(path) if path and not overrides else "sim: systolic"
    return validated(SystolicSpec, values, base, where)
