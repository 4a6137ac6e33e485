"""Rules of operators that move, merge, split or reduce dimensions."""

from __future__ import annotations

import operator
from typing import Any

from torch.fx import Node

from vitslim.graph.axes.scope import Rule, Scope, Terms, opaque, pair, tensors
from vitslim.graph.axes.terms import Prim, Prod, Sum, Term, freeze, parts_of, product, size, unify
from vitslim.graph.nodes import argument

END = 2**31
"""A slice that ends behind this reaches the end."""


def same(scope: Scope, node: Node) -> Terms:
    """The result has the terms of the first operand."""
    return scope.of(argument(node, 0))


def reshape(scope: Scope, node: Node) -> Terms:
    """Row-major merging and splitting; every size argument is the size of a dimension of the result."""
    result = match(scope.of(argument(node, 0)), scope.shape(node))
    for item, term in enumerate(result):
        scope.declare(node, 1, item, term)
    return result


def match(terms: Terms, shape: tuple[int, ...]) -> Terms:
    """Terms of a reshaped tensor: the shortest runs of dimensions with equal products are tied to each other."""
    result: list[Term] = []
    source = [term for term in terms if size(term) != 1]
    position = 0
    while position < len(shape):
        if shape[position] == 1:
            result.append(Prim(1, frozen="has one index"))
            position += 1
            continue
        taken, sizes = [source.pop(0)], [shape[position]]
        while (left := size(Prod(tuple(taken)))) != (right := _product(sizes)):
            if left < right:
                taken.append(source.pop(0))
            else:
                position += 1
                sizes.append(shape[position])
        result += _tied(taken, sizes)
        position += 1
    return tuple(result)


def _tied(taken: list[Term], sizes: list[int]) -> list[Term]:
    if len(taken) == 1 and len(sizes) == 1:
        return taken
    pieces: list[Term] = [Prim(n) if n != 1 else Prim(1, frozen="has one index") for n in sizes]
    unify(product(taken), product(pieces))
    return pieces


def _product(sizes: list[int]) -> int:
    total = 1
    for n in sizes:
        total *= n
    return total


def flatten(scope: Scope, node: Node) -> Terms:
    """A reshape whose sizes are not written out."""
    return match(scope.of(argument(node, 0)), scope.shape(node))


def permute(scope: Scope, node: Node) -> Terms:
    x = scope.of(argument(node, 0))
    return tuple(x[int(dim)] for dim in argument(node, 1))


def transpose(scope: Scope, node: Node) -> Terms:
    x = list(scope.of(argument(node, 0)))
    first, second = int(argument(node, 1)), int(argument(node, 2))
    x[first], x[second] = x[second], x[first]
    return tuple(x)


def unsqueeze(scope: Scope, node: Node) -> Terms:
    x = list(scope.of(argument(node, 0)))
    dim = int(argument(node, 1))
    x.insert(dim if dim >= 0 else len(x) + 1 + dim, Prim(1, frozen="has one index"))
    return tuple(x)


def squeeze(scope: Scope, node: Node) -> Terms:
    x = scope.of(argument(node, 0))
    dims = argument(node, 1, "dim", tuple(range(len(x))))
    gone = {int(d) % len(x) for d in ((dims,) if isinstance(dims, int) else dims)}
    return tuple(term for dim, term in enumerate(x) if dim not in gone or size(term) != 1)


def expand(scope: Scope, node: Node) -> Terms:
    """Dimensions of size 1 stretch; the others stay."""
    x, shape = scope.of(argument(node, 0)), scope.shape(node)
    new = len(shape) - len(x)
    result = []
    for dim, length in enumerate(shape):
        old = x[dim - new] if dim >= new else None
        kept = old if old is not None and size(old) == length else Prim(length, frozen="repeats one index")
        result.append(kept)
        scope.declare(node, 1, dim, kept)
    return tuple(result)


def cat(scope: Scope, node: Node) -> Terms:
    operands = [scope.of(operand) for operand in argument(node, 0)]
    dim = int(argument(node, 1, "dim", 0)) % len(operands[0])
    for other in operands[1:]:
        for position, (a, b) in enumerate(zip(operands[0], other, strict=True)):
            if position != dim:
                unify(a, b)
    joined = Sum(tuple(terms[dim] for terms in operands))
    return tuple(joined if position == dim else term for position, term in enumerate(operands[0]))


def stack(scope: Scope, node: Node) -> Terms:
    operands = [scope.of(operand) for operand in argument(node, 0)]
    for other in operands[1:]:
        for a, b in zip(operands[0], other, strict=True):
            unify(a, b)
    dim = int(argument(node, 1, "dim", 0)) % (len(operands[0]) + 1)
    index = Prim(len(operands), frozen="counts stacked tensors")
    return (*operands[0][:dim], index, *operands[0][dim:])


def split(scope: Scope, node: Node) -> list[Terms]:
    """split_with_sizes: each size is the size of one part. split and chunk: the parts stay equal to each other."""
    x = scope.of(argument(node, 0))
    dim = int(argument(node, 2, "dim", 0)) % len(x)
    shapes = scope.shapes[node]
    parts = parts_of(x[dim], [shape[dim] for shape in shapes])
    sizes = argument(node, 1)
    if isinstance(sizes, (list, tuple)):
        for item, part in enumerate(parts):
            scope.declare(node, 1, item, part)
    else:
        for part in parts[1:]:
            if size(part) == size(parts[0]):
                unify(parts[0], part)
        scope.declare(node, 1, None, parts[0])
    return [(*x[:dim], part, *x[dim + 1 :]) for part in parts]


def unbind(scope: Scope, node: Node) -> list[Terms]:
    x = scope.of(argument(node, 0))
    dim = int(argument(node, 1, "dim", 0)) % len(x)
    freeze(x[dim], "is taken apart index by index")
    return [(*x[:dim], *x[dim + 1 :])] * size(x[dim])


def select(scope: Scope, node: Node) -> Terms:
    x = scope.of(argument(node, 0))
    dim = int(argument(node, 1)) % len(x)
    freeze(x[dim], "is read at one index")
    return (*x[:dim], *x[dim + 1 :])


def slice_(scope: Scope, node: Node) -> Terms:
    """A part of a dimension; with a step the dimension stays."""
    x = scope.of(argument(node, 0))
    dim = int(argument(node, 1, "dim", 0)) % len(x)
    start, end = argument(node, 2, "start") or 0, argument(node, 3, "end")
    step, length = int(argument(node, 4, "step", 1)), size(x[dim])
    if not isinstance(start, int) or not (end is None or isinstance(end, int)) or step != 1:
        freeze(x[dim], "is read in steps")
        return (*x[:dim], *scope.fresh(scope.shape(node)[dim : dim + 1], "is read in steps"), *x[dim + 1 :])
    start = start if start >= 0 else length + start
    end = length if end is None or end > length else end if end >= 0 else length + end
    sizes = [start, end - start, length - end]
    parts = iter(parts_of(x[dim], [n for n in sizes if n]))
    before, middle, _ = (next(parts) if n else None for n in sizes)
    if middle is None:
        return tuple(opaque(scope, node))
    if before is not None:
        scope.declare(node, 2, None, before)
    if end < length:
        scope.declare(node, 3, None, Sum((before, middle)) if before is not None else middle)
    return (*x[:dim], middle, *x[dim + 1 :])


def reduce(scope: Scope, node: Node) -> Terms:
    """mean, sum, amax, ...: a reduced axis stays, since what is left of it would mean something else."""
    x = scope.of(argument(node, 0))
    dims = argument(node, 1, "dim", None)
    gone = {int(d) % len(x) for d in ([dims] if isinstance(dims, int) else dims or range(len(x)))}
    for dim in gone:
        freeze(x[dim], "is averaged or summed over")
    if argument(node, 2, "keepdim", False):
        return tuple(Prim(1, frozen="has one index") if d in gone else term for d, term in enumerate(x))
    return tuple(term for d, term in enumerate(x) if d not in gone)


def roll(scope: Scope, node: Node) -> Terms:
    x = scope.of(argument(node, 0))
    for dim in argument(node, 2, "dims", ()):
        freeze(x[int(dim)], "is shifted")
    return x


def pad(scope: Scope, node: Node) -> Terms:
    """Padding counts pairs from the last dimension."""
    x, amounts, shape = scope.of(argument(node, 0)), argument(node, 1), scope.shape(node)
    result = list(x)
    for dim in range(len(x)):
        pair = 2 * (len(x) - 1 - dim)
        if pair < len(amounts) and any(amounts[pair : pair + 2]):
            freeze(x[dim], "is padded")
            result[dim] = Prim(shape[dim], frozen="is padded")
    return tuple(result)


def index(scope: Scope, node: Node) -> Terms:
    """Reading a table by tensors of indices: the dimensions read stay, the others pass behind those of the indices."""
    x, indices = scope.of(argument(node, 0)), argument(node, 1)
    if any(item is None for item in indices):
        return tuple(opaque(scope, node))
    for term in x[: len(indices)]:
        freeze(term, "is read by a table of indices")
    return (*pair([scope.of(item) for item in indices]), *x[len(indices) :])


def getitem(scope: Scope, node: Node) -> Any:
    """One of several results."""
    return tensors(scope.terms[argument(node, 0)])[int(argument(node, 1))]


RULES: dict[Any, Rule] = {
    operator.getitem: getitem,
    **dict.fromkeys(("aten.reshape.default", "aten.view.default", "aten._unsafe_view.default"), reshape),
    **dict.fromkeys(("aten.flatten.using_ints", "aten.unflatten.int"), flatten),
    **dict.fromkeys(
        (
            "aten.contiguous.default", "aten.clone.default", "aten.dropout.default", "aten.to.dtype",
            "aten.to.dtype_layout", "aten.type_as.default", "aten.alias.default", "aten.detach.default",
            "aten._to_copy.default", "aten.lift_fresh_copy.default",
        ),
        same,
    ),
    "aten.permute.default": permute,
    "aten.transpose.int": transpose,
    "aten.unsqueeze.default": unsqueeze,
    **dict.fromkeys(("aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default"), squeeze),
    "aten.expand.default": expand,
    "aten.cat.default": cat,
    "aten.stack.default": stack,
    **dict.fromkeys(("aten.split_with_sizes.default", "aten.split.Tensor", "aten.chunk.default"), split),
    "aten.unbind.int": unbind,
    "aten.select.int": select,
    "aten.slice.Tensor": slice_,
    **dict.fromkeys(("aten.mean.dim", "aten.sum.dim_IntList", "aten.amax.default", "aten.amin.default"), reduce),
    "aten.roll.default": roll,
    **dict.fromkeys(("aten.pad.default", "aten.constant_pad_nd.default"), pad),
    "aten.index.Tensor": index,
}  # fmt: skip
