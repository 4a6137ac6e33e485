"""The parts of a transformer, found in its graph: blocks, attention, MLP, residual branches and tokens."""

from vitslim.graph.anatomy.attention import Attention
from vitslim.graph.anatomy.blocks import Anatomy, Block, Linear, block_input, find_anatomy
from vitslim.graph.anatomy.branches import Branch, find_branches
from vitslim.graph.anatomy.flow import ancestors, descendants, image_dependent_nodes
from vitslim.graph.anatomy.patches import is_patch_convolution
from vitslim.graph.anatomy.squeezable import squeeze_obstacle

__all__ = [
    "Anatomy",
    "Attention",
    "Block",
    "Branch",
    "Linear",
    "ancestors",
    "block_input",
    "descendants",
    "find_anatomy",
    "find_branches",
    "image_dependent_nodes",
    "is_patch_convolution",
    "squeeze_obstacle",
]
