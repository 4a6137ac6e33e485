"""An ONNX graph with lookups by value: its producer, its consumers, its type, and whether it is constant."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cached_property

import onnx
from onnx import NodeProto, TensorProto

from vitslim.errors import InputError
from vitslim.workload.operator_kinds import CONTROL_FLOW, DOMAINS
from vitslim.workload.type_inference import TensorType, infer_open_types, infer_types

TRANSPARENT = {"Cast", "Dropout", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Flatten"}
"""Operators that return their input with another shape or type."""
LAYER = "vitslim.layer"
SCOPES = "pkg.torch.onnx.name_scopes"
"""Key under which torch.onnx lists the modules of a node, outermost first, the operation last."""
QUANTIZED = "_quantized"
"""Suffix that the quantizer of ONNX Runtime appends to the names of weights."""
QUOTED = re.compile(r"'([^']*)'")
ANONYMOUS = re.compile(r"^(val_\d+(_|$)|\d+$|onnx::)")


class OnnxGraph:
    """Read-only lookups over one model."""

    def __init__(self, model: onnx.ModelProto, batch: int | None) -> None:
        """Infer the shapes for one batch size; with None dynamic sizes stay open.

        Raises InputError for control flow, and when a node reads a value that does not exist.
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
        self.types: dict[str, TensorType] = infer_open_types(model) if batch is None else infer_types(model, batch)

    @cached_property
    def consumers(self) -> dict[str, list[NodeProto]]:
        """Name of a value to the nodes that read it."""
        users: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                users[name].append(node)
        return users

    @cached_property
    def constant(self) -> set[str]:
        """Names of the values that do not depend on the model's input."""
        known = set(self.initializers) | {""}
        for node in self.nodes:
            if known.issuperset(node.input):
                known.update(node.output)
        return known

    def type_of(self, value: str, node: NodeProto) -> TensorType:
        """Return the type of a value. Raises InputError, naming the node that needs it, when it is unknown."""
        if value not in self.types:
            raise InputError(f"the shape of '{value}', an input or output of {node.op_type} '{node.name}', "
                             "cannot be inferred",
                             "export the model for a fixed image size with standard ONNX operators")  # fmt: skip
        return self.types[value]

    def only_consumer(self, node: NodeProto) -> NodeProto | None:
        """Return the only node that reads the first output of a node; None when there are none or several."""
        users = self.consumers.get(node.output[0], [])
        return users[0] if len(users) == 1 else None

    @cached_property
    def sizes(self) -> set[str]:
        """Names of the values that follow from shapes and constants alone; runtimes compute them ahead."""
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
                    raise InputError(f"{node.op_type} '{node.name}' reads '{name}', which does not exist in the file",
                                     "the file is damaged: export it again")  # fmt: skip

    def _check_flat(self) -> None:
        for node in self.nodes:
            if node.op_type in CONTROL_FLOW and node.domain in DOMAINS:
                raise InputError(
                    f"{node.op_type} '{node.name}' is control flow, which is not supported",
                    "export the model without control flow, for instance with torch.onnx.export(dynamo=True)",
                )


def attribute(node: NodeProto, name: str, default: int) -> int:
    """Return an integer attribute of a node, or the default when it is absent."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def integers(node: NodeProto, name: str) -> tuple[int, ...]:
    """Return an attribute of a node that is a list of integers; empty when it is absent."""
    return next((tuple(a.ints) for a in node.attribute if a.name == name), ())


def optional_input(node: NodeProto, index: int | None) -> str:
    """Return the name of an input of a node; empty when the node does not have it."""
    return node.input[index] if index is not None and index < len(node.input) else ""


def layer_of(node: NodeProto, weight: str = "") -> str:
    """Return the module of a node, from the metadata of vitslim or torch; else the name of the weight or the node."""
    notes: dict[str, str] = {prop.key: prop.value for prop in node.metadata_props}
    if LAYER in notes:
        return notes[LAYER].removesuffix(".weight")
    scopes = QUOTED.findall(notes.get(SCOPES, ""))[:-1]
    if any(scopes):
        return next(str(scope) for scope in reversed(scopes) if scope)
    if weight and not ANONYMOUS.match(weight):
        return weight.removesuffix(QUANTIZED).removesuffix(".weight")
    return node.name


def role_of(layer: str) -> str:
    """Return the name of a layer without its block: `attn.qkv` for `blocks.3.attn.qkv`."""
    return re.sub(r"^.*\.\d+\.", "", layer)
