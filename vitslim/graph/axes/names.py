"""Names of axes, derived from the parameters in which they occur: unique, and stable under edits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from vitslim.graph.axes.terms import Prim

NUMBERED = re.compile(r"^(.*\.\d+)(\..*)?$")
"""A module path up to its last number: `blocks.3` of `blocks.3.attn`."""

NUMBER = re.compile(r"\.\d+")

ADDED = "vitslim."
"""Prefix of parameters that stages add; they do not change the names of other axes."""

PREDICTOR_PREFIX = f"{ADDED}predictor."
"""Prefix of the parameters of token predictors, which have axes of their own."""

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
    """Return a name and a kind for each axis. ties: where it occurs; kinds: kinds that are known already.

    If several axes would get the same name, they all get their next longer name, so that `blocks.3.mlp` is unique.
    """
    own = {
        prim: [tie for tie in found if not tie[0].startswith(ADDED)]
        or [tie for tie in found if tie[0].startswith(PREDICTOR_PREFIX)]
        for prim, found in ties.items()
    }
    blocks = _blocks(own, kinds)
    matrices = {parameter for found in own.values() for parameter, dim in found if dim == 1}
    found: dict[Prim, Named] = {}
    candidates: dict[Prim, list[str]] = {}
    for prim, where in own.items():
        inferred = _kind([tie for tie in where if tie[0] not in buffers], blocks)
        kind = kinds.get(prim) or inferred
        if kind == "classes" and inferred == "embed":  # without a classifier the output is the residual stream
            kind = inferred
        found[prim] = Named("", kind)
        candidates[prim] = list(dict.fromkeys(_candidates(kind, where, blocks, matrices)))
    names = _unique(candidates)
    return {prim: Named(names[prim], named.kind) for prim, named in found.items()}


def _unique(candidates: Mapping[Prim, list[str]]) -> dict[Prim, str]:
    """Return the first candidate that is unique; a last candidate that is not unique gets a number."""
    level = dict.fromkeys(candidates, 0)
    while True:
        claimed: dict[str, list[Prim]] = {}
        for prim, names in candidates.items():
            claimed.setdefault(names[level[prim]], []).append(prim)
        crowded = [prim for sharing in claimed.values() if len(sharing) > 1 for prim in sharing]
        longer = [prim for prim in crowded if level[prim] + 1 < len(candidates[prim])]
        if not longer:
            break
        for prim in longer:
            level[prim] += 1
    numbered: dict[Prim, str] = {}
    for name, sharing in claimed.items():
        for number, prim in enumerate(sharing, start=1):
            numbered[prim] = name if number == 1 else f"{name}.{number}"
    return numbered


def _blocks(ties: Mapping[Prim, Sequence[Tie]], kinds: Mapping[Prim, str]) -> frozenset[str]:
    """Return the names of blocks: numbered modules that hold value axes; without any, numbered modules with submodules.

    If `stages.2.blocks.0` is a block, then `stages.0.blocks.1` is one too, even without attention.
    """
    modules = {parameter.rpartition(".")[0] for where in ties.values() for parameter, _ in where}
    numbered = {path for module in modules for path in _numbered(module)}
    scopes = {_scope(where) for prim, where in ties.items() if kinds.get(prim) == "v"}
    found = {match.group(1) for scope in scopes if (match := NUMBERED.match(scope))}
    if not found:
        found = {match.group(1) for module in modules if (match := NUMBERED.match(module)) and match.group(2)}
    patterns = {NUMBER.sub(".0", path) for path in found}
    return frozenset(path for path in numbered if NUMBER.sub(".0", path) in patterns)


def _numbered(module: str) -> Iterator[str]:
    """Return every prefix of a path that ends with a number: `stages.0` and `stages.0.blocks.3`."""
    parts = module.split(".")
    return (".".join(parts[: end + 1]) for end, part in enumerate(parts) if part.isdigit())


def _kind(ties: Sequence[Tie], blocks: frozenset[str]) -> str:
    """Return the kind of an axis: mlp between two layers of one block, embed across blocks, else other."""
    here = {_block_of(parameter, blocks) for parameter, _ in ties}
    if here & blocks and len(here) > 1:
        return "embed"
    weights = [dim for parameter, dim in ties if parameter.endswith("weight")]
    return "mlp" if here & blocks and {0, 1} <= set(weights) else "other"


def _candidates(kind: str, ties: Sequence[Tie], blocks: frozenset[str], matrices: set[str]) -> Iterator[str]:
    """Yield candidate names, shortest first. matrices: parameters of more than one dimension."""
    if kind in {"heads", "qk", "v", "mlp"}:
        scope = _scope(ties)
        yield from (_dotted(place, kind) for place in (_block_of(f"{scope}.", blocks) or scope, scope))
    elif kind == "embed":
        makers = [parameter for parameter, dim in ties if dim == 0 and parameter in matrices]
        here = [block for parameter in makers or [tie[0] for tie in ties] if (block := _block_of(parameter, blocks))]
        stage = _common(block.rpartition(".")[0] for block in here)
        yield from (_dotted(place, kind) for place in (stage.rpartition(".")[0], stage, _common(here)))
        yield f"{ties[0][0]}:{ties[0][1]}"
    elif kind in {"batch", "classes"} or not ties:
        yield kind
    else:
        yield f"{ties[0][0]}:{ties[0][1]}"


def _block_of(parameter: str, blocks: frozenset[str]) -> str:
    """Return the innermost block that holds a parameter; empty if there is none."""
    return max((block for block in blocks if parameter.startswith(block + ".")), key=len, default="")


def _scope(ties: Sequence[Tie]) -> str:
    """Return the module that holds all of these parameters."""
    return _common(parameter.rpartition(".")[0] for parameter, _ in ties)


def _common(paths: Iterable[str]) -> str:
    """Return the common prefix of dotted paths."""
    levels = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _dotted(place: str, kind: str) -> str:
    if place.rpartition(".")[2] == kind:
        return place
    return f"{place}.{kind}" if place else kind
