"""The module that is trained under the approximations of an accelerator."""

from __future__ import annotations

import copy

from torch.fx import GraphModule

from vitslim.graph.approximate.fact.rewrite import rewrite_fact
from vitslim.graph.approximate.spatten.rewrite import rewrite_spatten
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import graph_module, tensors_of
from vitslim.recipe.accelerators import Accelerator, FactSettings, SpattenSettings


def with_approximation(
    module: GraphModule, graph: ModelGraph, settings: Accelerator, counted: bool = False
) -> GraphModule:
    """Return a module that shares all parameters and has the approximations of an accelerator.

    `module` is the module of `graph`, or one that has its nodes under the same names (`with_taps`, `with_drop_path`).
    Gradients pass straight through rounding. With `counted` the module returns a pair: the output, and the final state
    of the layers with the counts of each image.
    """
    found = graph_module(tensors_of(module), copy.deepcopy(module.graph))
    match settings:
        case SpattenSettings():
            state = rewrite_spatten(found, graph, settings)
        case FactSettings():
            state = rewrite_fact(found, graph, settings)
    output = found.graph.output_node()
    if counted:
        output.args = ((output.args[0], state),)
    found.graph.eliminate_dead_code()
    found.graph.lint()
    found.recompile()
    found.train(module.training)
    return found
