"""Approximations of accelerators on real images: the functional half of simulated accelerators.

Each accelerator rewrites the attention of an exported graph so that it computes what the hardware would compute, and
counts the work of each image. `vitslim.backends.simulated` turns the counts into cycles and energy.
"""

from vitslim.graph.approximate.approximation import Approximation, approximate, run_approximation
from vitslim.graph.approximate.sites import approximation_obstacle
from vitslim.graph.approximate.training import with_approximation

__all__ = ["Approximation", "approximate", "approximation_obstacle", "run_approximation", "with_approximation"]
