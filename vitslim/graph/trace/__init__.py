"""From a timm model to its exported and normalized graph."""

from vitslim.graph.trace.timm_model import trace_timm

__all__ = ["trace_timm"]
