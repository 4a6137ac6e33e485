"""Settings of the systolic target: validated values, from the packaged file or a person's own, with overrides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from vitslim.backends.simulated.settings import Settings, merged, packaged, read_settings, validated

Dataflow = Literal["ws", "os", "is"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=False)]
PACKAGED = "systolic.yaml"


class VectorPasses(Settings):
    """How often an element goes through a lane of the vector unit."""

    softmax: PositiveInt
    norm: PositiveInt
    gelu: PositiveInt
    add: PositiveInt


class VectorUnit(Settings):
    """Runs what is no matrix product."""

    lanes: PositiveInt | Literal["columns"]
    passes: VectorPasses


class Sram(Settings):
    """Kilobytes (1024) of the three buffers; half of each is filled while the other half is read."""

    ifmap: PositiveInt
    filter: PositiveInt
    ofmap: PositiveInt


class Bits(Settings):
    """Widths of words: activations, weights, partial sums, results."""

    act: Annotated[int, Field(ge=1, le=64)]
    weight: Annotated[int, Field(ge=1, le=64)]
    acc: Annotated[int, Field(ge=1, le=64)]
    out: Annotated[int, Field(ge=1, le=64)]


class SystolicSpec(Settings):
    """One systolic array; `specs/systolic.yaml` explains every key and says where its value comes from."""

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
        """Whether the array skips the zeros of 2:4 weights: it keeps weights, and its pattern admits theirs."""
        kept, block = self.pattern
        return self.sparsity != "off" and self.dataflow == "ws" and block % 4 == 0 and 2 * kept >= block > kept

    @property
    def lanes(self) -> int:
        """Lanes of the vector unit."""
        return self.array[1] if self.vector.lanes == "columns" else self.vector.lanes

    @property
    def bytes_per_cycle(self) -> float:
        """Bytes that DRAM moves in a cycle."""
        return self.dram_gbps / self.clock_ghz


def load_spec(overrides: Mapping[str, Any] | None = None, path: Path | None = None) -> SystolicSpec:
    """The packaged settings, or those of a file, with some keys replaced; mappings may be given in part.

    Raises InputError for a file that is missing or not a YAML mapping, UsageError for wrong keys and values.
    """
    base = packaged(PACKAGED)
    own = {key: value for key, value in (read_settings(path) if path else {}).items() if key != "target"}
    values = merged(merged(base, own), overrides or {})
    where = str(path) if path and not overrides else "sim: systolic"
    return validated(SystolicSpec, values, base, where)
