"""The config of the method. It imports no torch, so that recipes are checked quickly."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from vitslim.recipe.stage_config import Phase
from vitslim.recipe.stages.prune import Prune


class EveryThird(Prune):
    """Mask every third weight of a row."""

    phase: ClassVar[Phase] = Phase.MASK

    method: Literal["every-third"]
    first: Annotated[int, Field(ge=0, le=2)] = Field(0, description="position of the first masked weight of a row")

    def make_stage(self) -> Any:
        """Return the stage that runs the config."""
        from vitslim_thirds.stage import EveryThirdStage

        return EveryThirdStage(self)
