"""Fake quantisers on the input and the weight of linears and convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from vitslim.errors import StageError, closest
from vitslim.graph.edits import FakeQuantSite, InsertFakeQuant
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.fake_quant import fake_quant, integer_range

FAKE_QUANT = torch.ops.vitslim.fake_quant.default
QUANTISER_PREFIX = "vitslim.q."
"""Scales are parameters `vitslim.q.<layer>.weight_scale` and `vitslim.q.<layer>.input_scale`."""

_LAYER_TARGETS = (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default)
