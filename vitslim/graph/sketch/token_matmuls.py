"""The matmuls of token squeezing; one function for each operator, for the sketch of a graph and for estimates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vitslim.graph.edits.insert_squeeze import FUSED_TOKENS, OPERATORS
from vitslim.graph.ops.squeeze import FUSE_INATTENTIVE, KEEP_TOKENS, SQUEEZE_TOKENS
from vitslim.graph.sketch.matmul import Matmul
from vitslim.graph.sketch.size import ONE, Size

if TYPE_CHECKING:
    from vitslim.graph.sketch.model_sketch import ModelSketch

ROLE = "squeeze"


@dataclass(frozen=True)
class SqueezeSizes:
    """Sizes in one squeezed block, for one image."""

    block: str
    heads: Size
    head_width: Size
    """Width of queries and keys."""
    width: Size
    """Channels of a token."""
    tokens: Size
    """Tokens before, with prefix tokens."""
    kept: Size
    """Patch tokens that stay, without tokens that the operator adds."""
    removed: Size
    """Patch tokens that are removed."""


SqueezeMatmuls = Callable[[SqueezeSizes], tuple[Matmul, ...]]


@dataclass(frozen=True)
class TokenCut:
    """The planned squeezing of one block."""

    kept: int
    """Patch tokens that stay."""
    matmuls: tuple[SqueezeMatmuls, ...]
    added: int = 0
    """Tokens that the operator adds to them."""
    at_input: bool = False
    """Whether tokens are removed at the input of the block, before its attention."""
    parameters: Mapping[str, Size] = field(default_factory=dict)
    """Name of each new parameter to its number of elements."""
    proportional: bool | None = None
    """Whether later attentions weigh keys by the sizes of tokens; None for an operator that counts no sizes."""


def class_attention(block: str, heads: Size, head_width: Size, tokens: Size) -> tuple[Matmul, ...]:
    """Attention of the class token."""
    return (Matmul(f"{block}.class_attention", heads, ONE, head_width, tokens, "", block, ROLE),)


def received_attention(block: str, heads: Size, head_width: Size, tokens: Size) -> tuple[Matmul, ...]:
    """Attention that each token receives from all tokens."""
    return (Matmul(f"{block}.received_attention", heads, tokens, head_width, tokens, "", block, ROLE),)


def squeeze_tokens(sizes: SqueezeSizes) -> tuple[Matmul, ...]:
    """Similarity of removed to kept tokens, and the fusion that adds them (TPS)."""
    where = ("", sizes.block, ROLE)
    return (
        Matmul(f"{sizes.block}.similarity", ONE, sizes.removed, sizes.width, sizes.kept, *where),
        Matmul(f"{sizes.block}.fusion", ONE, sizes.kept, sizes.removed, sizes.width, *where),
    )


def keep_tokens(sizes: SqueezeSizes) -> tuple[Matmul, ...]:  # noqa: ARG001 - the signature that all share
    """No matmul: the other tokens are dropped."""
    return ()


def fuse_inattentive(sizes: SqueezeSizes) -> tuple[Matmul, ...]:
    """The weighted sum of the removed tokens (EViT)."""
    return (Matmul(f"{sizes.block}.fusion", ONE, ONE, sizes.removed, sizes.width, "", sizes.block, ROLE),)


def score_matmuls(has_class_token: bool) -> SqueezeMatmuls:
    """Return the matmuls of the attention score of a model."""
    score = class_attention if has_class_token else received_attention
    return lambda sizes: score(sizes.block, sizes.heads, sizes.head_width, sizes.tokens)


BY_OPERATOR: Mapping[Any, SqueezeMatmuls] = MappingProxyType(
    {SQUEEZE_TOKENS: squeeze_tokens, KEEP_TOKENS: keep_tokens, FUSE_INATTENTIVE: fuse_inattentive}
)
"""Operator that takes tokens, scores and the number of kept tokens to its matmuls."""


def attention_cuts(sketch: ModelSketch, keep: Mapping[str, int], method: str = "etps") -> dict[str, TokenCut]:
    """Return the cuts of a method that scores by attention: block name to the number of kept patch tokens."""
    matmuls = (score_matmuls(sketch.has_class_token), BY_OPERATOR[OPERATORS[method]])
    return {block: TokenCut(count, matmuls, FUSED_TOKENS.get(method, 0)) for block, count in keep.items()}
