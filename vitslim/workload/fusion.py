"""Group the nodes of a graph into kernels: the usual fusions of inference runtimes and of torch.compile.

- Views (reshape, transpose, split, slice, dequantize) need no kernel: their consumer reads the same memory.
- Attention is one kernel: scale, QK^T, mask, softmax, PV (flash attention).
- Elementwise operators after a GEMM (bias, GELU, residual add, quantize, batch norm) join its kernel when nothing else
  reads its result.
- Adjacent elementwise operators are one kernel, and a norm joins the elementwise kernel before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from onnx import NodeProto

from vitslim.workload.onnx_graph import OnnxGraph
from vitslim.workload.operator_kinds import VIEWS
from vitslim.workload.operators import MATMUL_KINDS, Kernel, Operator
from vitslim.workload.weights import element_bits, find_weight

SCORES, VALUES = {"QK^T", "class attention"}, "PV"
ONTO: dict[str, set[str]] = {
    "elementwise": {*MATMUL_KINDS, "norm", "softmax", "elementwise", "movement"},
    "quantize": {*MATMUL_KINDS, "norm", "softmax", "elementwise", "movement"},
    "norm": {"elementwise", "movement"},
    "softmax": {"attention", "elementwise"},
    "movement": {"elementwise", "movement"},
}
"""Kind of a node to the kinds of kernels that it may join."""
SINGLE_READER = {"gemm", "conv", "attention"}
"""Kinds of kernels that a node may join only when nothing else reads their result."""


@dataclass
class _Draft:
    """A kernel under construction."""

    kind: str
    nodes: list[NodeProto] = field(default_factory=list)
    has_softmax: bool = False


class Fusion:
    """One pass over the nodes in the order of the file; `kernels` returns the result."""

    def __init__(self, graph: OnnxGraph, kinds: Mapping[str, str], roles: Mapping[str, str]) -> None:
        """`kinds` and `roles` map the first output of a node; a node without a kind is unknown."""
        self._graph, self._kinds, self._roles = graph, kinds, roles
        self._not_data = graph.sizes - graph.constant
        self._drafts: list[_Draft] = []
        self._home: dict[str, int] = {}
        """Value to the index of the kernel that computes it; for a view the kernel of the value that it shows."""
        self._root: dict[str, str] = {}
        """View to the value in memory that it shows."""
        self._readers = self._count_readers()
        self._prologue = set(self._scales_of_scores())
        for node in graph.nodes:
            if not graph.sizes.issuperset(node.output):
                self._place(node)

    def _place(self, node: NodeProto) -> None:
        if self._is_view(node):
            source = next((name for name in node.input if name not in self._graph.constant), node.input[0])
            for name in node.output:
                self._root[name] = self._root.get(source, source)
                if source in self._home:
                    self._home[name] = self._home[source]
            return
        kind = self._kinds.get(node.output[0], "")
        index = self._host(node, kind)
        if index is None:
            index = len(self._drafts)
            self._drafts.append(_Draft(kind))
        draft = self._drafts[index]
        draft.nodes.append(node)
        draft.has_softmax |= kind == "softmax"
        if kind == "norm":
            draft.kind = "norm"
        self._home.update(dict.fromkeys(node.output, index))

    def _is_view(self, node: NodeProto) -> bool:
        return node.op_type in VIEWS or node.output[0] in self._prologue

    def _host(self, node: NodeProto, kind: str) -> int | None:
        """Return the kernel that a node may join: the last that computes one of its inputs, which avoids cycles."""
        last = max((name for name in node.input if name in self._home), key=self._home.__getitem__, default=None)
        if last is None:
            return None
        index, draft = self._home[last], self._drafts[self._home[last]]
        alone = self._readers[self._root.get(last, last)] == 1
        if kind == "attention":
            own = self._roles.get(node.output[0]) == VALUES and draft.kind == "attention" and draft.has_softmax
            return index if own and alone else None
        if node.op_type == "BatchNormalization" and draft.kind in SINGLE_READER:
            return index if alone else None
        if draft.kind not in ONTO.get(kind, ()) or (draft.kind in SINGLE_READER and not alone):
            return None
        return index

    def _count_readers(self) -> Counter[str]:
        """Return the number of readers of each value in memory: nodes other than views, and the caller."""
        root: dict[str, str] = {}
        readers: Counter[str] = Counter()
        for node in self._graph.nodes:
            sources = {root.get(name, name) for name in node.input if name}
            if node.op_type in VIEWS and node.input:
                root.update(dict.fromkeys(node.output, root.get(node.input[0], node.input[0])))
            else:
                readers.update(sources)
        readers.update({root.get(name, name) for name in self._graph.outputs})
        return readers

    def _scales_of_scores(self) -> Iterator[str]:
        """Yield the outputs of the nodes that scale queries or keys before QK^T."""
        for node in self._graph.nodes:
            if self._roles.get(node.output[0]) in SCORES and self._kinds.get(node.output[0]) == "attention":
                for name in node.input[:2]:
                    yield from self._scales_before(name)

    def _scales_before(self, name: str) -> Iterator[str]:
        node = self._graph.producers.get(name)
        while node is not None and node.input and (node.op_type in VIEWS or self._scales(node)):
            if node.op_type not in VIEWS:
                yield node.output[0]
            node = self._graph.producers.get(node.input[0])

    def _scales(self, node: NodeProto) -> bool:
        types = self._graph.types
        single = node.op_type in {"Mul", "Div"} and len(self._graph.consumers[node.output[0]]) == 1
        return single and any(n in self._graph.constant and n in types and types[n].elements == 1 for n in node.input)

    def kernels(self, places: Mapping[str, tuple[int, ...]], operators: tuple[Operator, ...]) -> tuple[Kernel, ...]:
        """Return the kernels; `places` maps the first output of a node to the indices of its operators."""
        used_outside = self._used_outside()
        return tuple(self._kernel(i, draft, places, operators, used_outside) for i, draft in enumerate(self._drafts))

    def _kernel(
        self, index: int, draft: _Draft, places: Mapping[str, tuple[int, ...]], operators: tuple[Operator, ...],
        used_outside: set[str],
    ) -> Kernel:  # fmt: skip
        found = [place for node in draft.nodes for place in places.get(node.output[0], ())]
        found.sort(key=lambda place: (_rank(operators[place]), place))
        read = {name: None for node in draft.nodes for name in self._read_by(node, index)}
        return Kernel(
            operators=tuple(found),
            read=self._elements(read),
            written=self._elements({n: None for node in draft.nodes for n in node.output if n in used_outside}),
            unknown="" if found or draft.kind else draft.nodes[0].op_type,
        )

    def _read_by(self, node: NodeProto, index: int) -> Iterator[str]:
        """Yield the values that a node reads from other kernels, and constants other than the weights of GEMMs."""
        is_gemm = self._kinds.get(node.output[0]) in MATMUL_KINDS
        for name in node.input:
            if name and name not in self._not_data and self._home.get(name) != index:
                constant = name in self._graph.constant
                if not (constant and is_gemm and find_weight(self._graph, name) is not None):
                    yield name

    def _elements(self, names: Mapping[str, None]) -> dict[int, int]:
        """Return the number of elements for each bit width. Views of one value count at most as that value."""
        shown: Counter[str] = Counter()
        types = self._graph.types
        for name in names:
            if name in types:
                shown[self._root.get(name, name)] += types[name].elements
        totals: Counter[int] = Counter()
        for root, count in shown.items():
            if root in types:
                totals[element_bits(types[root].element)] += min(count, types[root].elements)
        return dict(totals)

    def _used_outside(self) -> set[str]:
        """Return the values that another kernel or the caller reads."""
        used = {self._root.get(name, name) for name in self._graph.outputs}
        for index, draft in enumerate(self._drafts):
            for node in draft.nodes:
                used |= {self._root.get(name, name) for name in node.input if self._home.get(name, index) != index}
        return used


def _rank(operator: Operator) -> int:
    """Return the rank of an operator as the main one of a kernel: GEMMs, norms, softmax, ..., elementwise."""
    order = (*MATMUL_KINDS, "norm", "softmax", "select", "movement", "elementwise", "quantize")
    return order.index(operator.op)
