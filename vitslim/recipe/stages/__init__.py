"""Stage entries of a recipe: one file for each kind, one config for each method."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from vitslim.recipe.stage_config import StageConfig
from vitslim.recipe.stages.distill import Distill
from vitslim.recipe.stages.export import Export
from vitslim.recipe.stages.nipq import BitTarget, Nipq
from vitslim.recipe.stages.nvit import Groups, Nvit
from vitslim.recipe.stages.prune import Budget, DepGraph, Depth, GroupSparsity, PruningRatios, TwoFour, Unstructured
from vitslim.recipe.stages.qat import OwnBits, Qat
from vitslim.recipe.stages.quantize import Floor, Ptq, Quantize
from vitslim.recipe.stages.quantized_layers import QuantizedLayers
from vitslim.recipe.stages.token_squeeze import (
    DiffRate,
    Dtps,
    DynamicVit,
    Etps,
    Evit,
    KeepBest,
    Merging,
    PruneOnly,
    TokenSqueeze,
    Tome,
    WithPredictors,
)

METHODS: list[type[StageConfig]] = [
    DepGraph,
    TwoFour,
    Unstructured,
    Depth,
    Nvit,
    Distill,
    Ptq,
    Qat,
    Nipq,
    Etps,
    Evit,
    PruneOnly,
    Dtps,
    DynamicVit,
    Tome,
    DiffRate,
    Export,
]
"""The config of every method that ships with vitslim."""

_further: ContextVar[tuple[type[StageConfig], ...]] = ContextVar("further_methods", default=())


@contextmanager
def further_methods(configs: Iterable[type[StageConfig]]) -> Iterator[None]:
    """Let recipes use the methods of these configs too, until the context ends."""
    token = _further.set(tuple(configs))
    try:
        yield
    finally:
        _further.reset(token)


def methods() -> tuple[type[StageConfig], ...]:
    """Return the config of every method that a recipe can use here."""
    return (*METHODS, *_further.get())


def kinds() -> dict[str, tuple[type[StageConfig], ...]]:
    """Return the configs of each stage kind, by the key that a recipe writes."""
    found: dict[str, tuple[type[StageConfig], ...]] = {}
    for config in methods():
        found[config.kind] = (*found.get(config.kind, ()), config)
    return found


__all__ = [
    "METHODS",
    "BitTarget",
    "Budget",
    "DepGraph",
    "Depth",
    "DiffRate",
    "Distill",
    "Dtps",
    "DynamicVit",
    "Etps",
    "Evit",
    "Export",
    "Floor",
    "GroupSparsity",
    "Groups",
    "KeepBest",
    "Merging",
    "Nipq",
    "Nvit",
    "OwnBits",
    "PruneOnly",
    "PruningRatios",
    "Ptq",
    "Qat",
    "Quantize",
    "QuantizedLayers",
    "StageConfig",
    "TokenSqueeze",
    "Tome",
    "TwoFour",
    "Unstructured",
    "WithPredictors",
    "further_methods",
    "kinds",
    "methods",
]
