"""One small rule for each ATen operator, by family.

Keys are operator names, with or without the overload: `aten.mean` is for all overloads of mean that have no rule of
their own. A name and not the operator itself, so that vitslim's own operators need not be registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vitslim.graph.axes.rules import elementwise, layers, parts, positions, shapes, tokens
from vitslim.graph.axes.scope import Rule

RULES: Mapping[Any, Rule] = MappingProxyType(
    layers.RULES | shapes.RULES | parts.RULES | positions.RULES | elementwise.RULES | tokens.RULES
)
