"""The interface of an edit: one recorded change of a graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

    from vitslim.graph.model_graph import ModelGraph


@dataclass(frozen=True)
class Edit(ABC):
    """The record of one change. Replaying all records of a graph on its source model rebuilds the graph.

    An edit names axes and parameters (`blocks.3.mlp`, `blocks.3.mlp.fc2.weight`), never nodes of the graph, so it can
    be replayed with a torch version that names nodes differently. Tensors are not part of it: they are saved with the
    weights and loaded after all edits were replayed.
    """

    @abstractmethod
    def replay(self, graph: ModelGraph) -> ModelGraph:
        """Return a new graph with the same change, whose new parameters have initial values."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as values that `json.dumps` takes."""
        return asdict(self)

    @classmethod
    @abstractmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Rebuild an edit from the parsed JSON of `to_json`. Raises KeyError or TypeError for other fields."""
