"""Stochastic depth in the module that is trained; the stored graph does not change.

Source: Huang et al., "Deep networks with stochastic depth", ECCV 2016.
"""

from __future__ import annotations

import copy
from typing import Any

from timm.layers.drop import calculate_drop_path_rates
from torch.fx import GraphModule

from vitslim.errors import StageError
from vitslim.graph.anatomy import find_anatomy, find_branches
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import graph_module, tensors_of
from vitslim.graph.ops.image_draws import drop_images


def with_drop_path(module: GraphModule, graph: ModelGraph, rate: float) -> GraphModule:
    """Return a module that shares all parameters and skips residual branches at random for each image.

    `module` is the module of `graph`, or one with the same nodes (`with_taps`). As in timm, the probability rises
    linearly over the blocks from 0 to `rate`, in [0, 1), and branches that are not skipped are scaled by the inverse of
    the probability to keep them. A rate of zero returns `module` itself. Raises StageError if the graph has no residual
    blocks.
    """
    if rate == 0:
        return module
    branches = find_branches(graph.module, find_anatomy(graph).shapes)
    if not branches:
        raise StageError("drop path needs residual blocks, and the model has none", "set train.drop_path to 0")
    blocks = list(dict.fromkeys(branch.block for branch in branches))
    rates: dict[str, Any] = dict(zip(blocks, calculate_drop_path_rates(rate, len(blocks)), strict=True))
    copied = copy.deepcopy(module.graph)
    copies = dict(zip(graph.module.graph.nodes, copied.nodes, strict=True))
    for branch in branches:
        add = copies[branch.add]
        result = copies[branch.add.all_input_nodes[1 - branch.stem]]
        with copied.inserting_before(add):
            kept = copied.call_function(drop_images, (result, rates[branch.block]))
        add.update_arg(1 - branch.stem, kept)
    return graph_module(tensors_of(module), copied)
