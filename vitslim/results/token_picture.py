"""Which patches of an image a model with squeezed tokens keeps, block by block."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from vitslim.results.value import Value

PatchState = Literal["kept", "host", "squeezed", "gone"]
"""State of a patch after a block, by its token: `kept` is unchanged; `host` is kept, and others were fused into it;
`squeezed` was fused into another token in this block; `gone` was removed by an earlier block or dropped."""


class SqueezedBlock(Value):
    """The patches whose tokens one block keeps and squeezes. All other patches are gone.

    A patch is its position in the grid, row by row from 0.
    """

    block: str
    """Name of the block, such as `blocks.3`."""
    kept: tuple[NonNegativeInt, ...]
    """Patches whose tokens are left after the block, in ascending order."""
    squeezed: dict[NonNegativeInt, NonNegativeInt | None] = Field({})
    """Patch whose token this block fused into another to the patch of that token; None if that token is of no patch."""

    @property
    def hosts(self) -> dict[int, int]:
        """Kept patch into whose token others were fused to their number, in ascending order of the patches."""
        guests = [host for host in self.squeezed.values() if host is not None]
        return {host: guests.count(host) for host in sorted(set(guests))}

    def patches(self, state: PatchState, count: int) -> tuple[int, ...]:
        """Return the patches in a state, in ascending order; `count` is the number of patches of the image."""
        hosts = set(self.hosts)
        match state:
            case "host":
                return tuple(sorted(hosts))
            case "kept":
                return tuple(patch for patch in self.kept if patch not in hosts)
            case "squeezed":
                return tuple(sorted(self.squeezed))
            case "gone":
                return tuple(sorted(set(range(count)) - set(self.kept) - set(self.squeezed)))


class TokenPicture(Value):
    """One validation image and the states of its patches after each block that squeezes tokens."""

    label: str
    """Class of the image."""
    media_type: Literal["image/png", "image/jpeg"]
    image: str = Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$")
    """The image as the model receives it, reduced in size, in Base64."""
    rows: int = Field(ge=1)
    """Rows of the patch grid."""
    columns: int = Field(ge=1)
    blocks: tuple[SqueezedBlock, ...]
    """In order of execution."""

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.rows * self.columns

    @model_validator(mode="after")
    def _check_positions(self) -> TokenPicture:
        for block in self.blocks:
            hosts = [host for host in block.squeezed.values() if host is not None]
            largest = max((*block.kept, *block.squeezed, *hosts), default=0)
            if largest >= self.patches:
                raise ValueError(f"'{block.block}' names patch {largest} of a grid with {self.patches} patches")
        return self
