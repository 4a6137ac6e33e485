"""Names of axes that a person recognises, from the parameters that each ties together: unique, stable under edits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from vitslim.graph.axes.terms import Prim

NUMBERED = re.compile(r"^(.*\.\d+)(\..*)?$")
"""A module path up to its last number: `blocks.3` of `blocks.3.attn`."""

ADDED = "vitslim."
"""Parameters that stages add have no say in names: an axis keeps its name when they come."""

Tie = tuple[str, int]
"""Parameter and dimension."""


@dataclass(frozen=True)
class Named:
    """Name and kind of an axis."""

    name: str
    kind: str


def name_axes(
    ties: Mapping[Prim, Sequence[Tie]], kinds: Mapping[Prim, str], buffers: frozenset[str]
) -> dict[Prim, Named]:
    """A name and a kind for each axis. ties: where it occurs; kinds: what is known of it already."""
    own = {prim: [tie for tie in found if not tie[0].startswith(ADDED)] for prim, found in ties.items()}
    blocks = _blocks(own, kinds)
    found: dict[Prim, Named] = {}
    taken: set[str] = set()
    for prim, where in own.items():
        kind = kinds.get(prim) or _kind([tie for tie in where if tie[0] not in buffers], blocks)
        name = next(name for name in _candidates(kind, where, blocks) if name not in taken)
        taken.add(name)
        found[prim] = Named(name, kind)
    return found


def _blocks(ties: Mapping[Prim, Sequence[Tie]], kinds: Mapping[Prim, str]) -> frozenset[str]:
    """Blocks are the numbered modules that hold an attention; without any, all numbered modules that hold others."""
    scopes = {_scope(where) for prim, where in ties.items() if kinds.get(prim) in {"heads", "qk", "v"}}
    blocks = {match.group(1) for scope in scopes if (match := NUMBERED.match(scope))}
    if not blocks:
        modules = (parameter.rpartition(".")[0] for where in ties.values() for parameter, _ in where)
        blocks = {match.group(1) for module in modules if (match := NUMBERED.match(module)) and match.group(2)}
    return frozenset(blocks)


def _kind(ties: Sequence[Tie], blocks: frozenset[str]) -> str:
    """An axis inside one block that one layer makes and another reads is its MLP's; one that leaves blocks, embed."""
    here = {_block_of(parameter, blocks) for parameter, _ in ties}
    if here & blocks and len(here) > 1:
        return "embed"
    weights = [dim for parameter, dim in ties if parameter.endswith("weight")]
    return "mlp" if here & blocks and {0, 1} <= set(weights) else "other"


def _candidates(kind: str, ties: Sequence[Tie], blocks: frozenset[str]) -> Iterable[str]:
    """Names to try, the most telling first; the last ones are unique."""
    first = f"{ties[0][0]}:{ties[0][1]}" if ties else kind
    if kind in {"heads", "qk", "v", "mlp"}:
        scope = _scope(ties)
        match = NUMBERED.match(scope)
        yield from (_dotted(place, kind) for place in ((match.group(1), scope) if match else (scope,)))
    elif kind == "embed":
        here = [block for parameter, _ in ties if (block := _block_of(parameter, blocks))]
        stage = _common(block.rpartition(".")[0] for block in here)
        yield from (_dotted(place, kind) for place in (stage.rpartition(".")[0], stage))
    elif kind in {"batch", "classes"}:
        yield kind
    yield first
    number = 2
    while True:
        yield f"{first}.{number}"
        number += 1


def _block_of(parameter: str, blocks: frozenset[str]) -> str:
    """The innermost block that holds a parameter; empty when none does."""
    return max((block for block in blocks if parameter.startswith(block + ".")), key=len, default="")


def _scope(ties: Sequence[Tie]) -> str:
    """The module that holds all of these parameters."""
    return _common(parameter.rpartition(".")[0] for parameter, _ in ties)


def _common(paths: Iterable[str]) -> str:
    """What dotted paths have in common from the left."""
    levels = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _dotted(place: str, kind: str) -> str:
    return f"{place}.{kind}" if place else kind
