"""Changes of a graph, one file each: the record, the function that applies it, its replay, and its JSON form.

A new edit is a new file and one line in `EDITS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vitslim.graph.edits.divide_tokens import DivideTokens
from vitslim.graph.edits.edit import Edit
from vitslim.graph.edits.fake_quant import FakeQuantSite, InsertFakeQuant
from vitslim.graph.edits.insert_predictors import InsertPredictors
from vitslim.graph.edits.insert_squeeze import InsertSqueeze
from vitslim.graph.edits.mask import Mask
from vitslim.graph.edits.merge_tokens import MergeTokens
from vitslim.graph.edits.quantize_attention import QuantizeAttention
from vitslim.graph.edits.read_pixels import ReadPixels
from vitslim.graph.edits.remove_blocks import RemoveBlocks
from vitslim.graph.edits.scale_activations import ScaleActivations
from vitslim.graph.edits.slice import Slice

EDITS: Mapping[str, type[Edit]] = MappingProxyType(
    {
        "Slice": Slice,
        "InsertSqueeze": InsertSqueeze,
        "InsertPredictors": InsertPredictors,
        "MergeTokens": MergeTokens,
        "RemoveBlocks": RemoveBlocks,
        "Mask": Mask,
        "ScaleActivations": ScaleActivations,
        "DivideTokens": DivideTokens,
        "ReadPixels": ReadPixels,
        "InsertFakeQuant": InsertFakeQuant,
        "QuantizeAttention": QuantizeAttention,
    }
)
"""Name of an edit in a saved graph, which is its class name, to its class."""

__all__ = [
    "EDITS",
    "DivideTokens",
    "Edit",
    "FakeQuantSite",
    "InsertFakeQuant",
    "InsertPredictors",
    "InsertSqueeze",
    "Mask",
    "MergeTokens",
    "QuantizeAttention",
    "ReadPixels",
    "RemoveBlocks",
    "ScaleActivations",
    "Slice",
]
