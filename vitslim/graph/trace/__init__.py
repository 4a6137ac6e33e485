"""From a timm model to its exported and normalized graph."""

from vitslim.graph.trace.timm_model import load_timm, trace_timm

__all__ = ["load_timm", "trace_timm"]
