"""Axis inference: find the dimensions of a model that belong together, index by index."""

from vitslim.graph.axes.infer import infer_axes
from vitslim.graph.axes.rules import RULES
from vitslim.graph.axes.table import Axis, AxisTable, Site
from vitslim.graph.axes.terms import Prim, Prod, Sum, Term

__all__ = ["RULES", "Axis", "AxisTable", "Prim", "Prod", "Site", "Sum", "Term", "infer_axes"]
