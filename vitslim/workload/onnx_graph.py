"""An ONNX graph with the look-ups that reading a workload needs: who made a value, who uses it, what is constant."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cached_property

import onnx
from onnx import NodeProto, TensorProto

from vitslim.errors import InputError
from vitslim.workload.declared import declared_types
from vitslim.workload.kinds import CONTROL_FLOW, DOMAINS
from vitslim.workload.shapes import TensorType, infer_types

TRANSPARENT = {"Cast", "Dropout", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Flatten"}
"""Operators that pass one tensor on in another form."""
LAYER = "vitslim.layer"
SCOPES = "pkg.torch.onnx.name_scopes"
"""A list of strings, outermost module first, the operation last."""
QUOTED = re.compile(r"'([^']*)'")
ANONYMOUS = re.compile(r"^(val_\d+(_|$)|\d+$|onnx::)")


class OnnxGraph:
    """Look-ups over one model; nothing in it changes."""

    def __init__(self, model: onnx.ModelProto, batch: int | None) -> None:
        """Infer shapes for one batch size; with None only types, of which a file may leave some open.

        Raises InputError when the graph is not whole.
        """
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.initializers: dict[str, TensorProto] = {t.name: t for t in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.initializers[node.output[0]] = node.attribute[0].t
        self.inputs = {value.name for value in model.graph.input} - self.initializers.keys()
        self.outputs = {value.name for value in model.graph.output}
        self.producers: dict[str, NodeProto] = {name: node for node in self.nodes for name in node.output if name}
        self._check_complete()
        self._check_flat()
        self.types: dict[str, TensorType] = declared_types(model) if batch is None else infer_types(model, batch)

    @cached_property
    def consumers(self) -> dict[str, list[NodeProto]]:
        """Value name to the nodes that read it."""
        users: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                users[name].append(node)
        return users

    @cached_property
    def constant(self) -> set[str]:
        """Values that do not depend on the model's input."""
        known = set(self.initializers) | {""}
        for node in self.nodes:
            if known.issuperset(node.input):
                known.update(node.output)
        return known

    def type_of(self, value: str, node: NodeProto) -> TensorType:
        """Type of a value. Raises InputError, naming the node that needs it, when it is unknown."""
        if value not in self.types:
            raise InputError(f"the shape of '{value}', needed by {node.op_type} '{node.name}', cannot be inferred",
                             "export the model with fixed image sizes and standard ONNX operators")  # fmt: skip
        return self.types[value]

    def only_consumer(self, node: NodeProto) -> NodeProto | None:
        """The one node that reads the node's first output, when there is exactly one."""
        users = self.consumers.get(node.output[0], [])
        return users[0] if len(users) == 1 else None

    @cached_property
    def sizes(self) -> set[str]:
        """Values that say how large others are: they follow from shapes alone, and runtimes know them beforehand."""
        known = set(self.constant)
        for node in self.nodes:
            if node.op_type in {"Shape", "Size"} or known.issuperset(node.input):
                known.update(node.output)
        return known

    def _check_complete(self) -> None:
        held = {"", *self.inputs, *self.initializers, *self.producers}
        for node in self.nodes:
            for name in node.input:
                if name not in held:
                    raise InputError(f"{node.op_type} '{node.name}' reads '{name}', which the file does not hold",
                                     "the file is damaged: write it again")  # fmt: skip

    def _check_flat(self) -> None:
        for node in self.nodes:
            if node.op_type in CONTROL_FLOW and node.domain in DOMAINS:
                raise InputError(
                    f"{node.op_type} '{node.name}' decides while the model runs what is computed",
                    "export the model without control flow, for instance with torch.onnx.export(dynamo=True)",
                )


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def integers(node: NodeProto, name: str) -> tuple[int, ...]:
    """A list of integers of a node; empty when it is absent."""
    return next((tuple(a.ints) for a in node.attribute if a.name == name), ())


def layer_of(node: NodeProto, weight: str = "") -> str:
    """Module that a node came from: vitslim and torch's exporter note it; else the weight's name, else the node's."""
    notes: dict[str, str] = {prop.key: prop.value for prop in node.metadata_props}
    if LAYER in notes:
        return notes[LAYER].removesuffix(".weight")
    scopes = QUOTED.findall(notes.get(SCOPES, ""))[:-1]
    if any(scopes):
        return next(str(scope) for scope in reversed(scopes) if scope)
    if weight and not ANONYMOUS.match(weight):
        return weight.removesuffix(".weight")
    return node.name


def role_of(layer: str) -> str:
    """A layer name without its block: `blocks.3.attn.qkv` gives `attn.qkv`."""
    return re.sub(r"^.*\.\d+\.", "", layer)
