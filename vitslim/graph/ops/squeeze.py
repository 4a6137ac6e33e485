"""Token squeezing (TPS, CVPR 2023, arXiv 2304.10716) as two operators that are one node each in a graph.

Both are composites of ordinary operators, so autograd, torch.export and the ONNX exporter need nothing else: top-k,
gathering by index, matmuls and a comparison, all with a constant number of kept tokens and a free batch size.

Multiply-accumulates for one image, with H heads of width d, N tokens, Np squeezed and Nr kept patch tokens of width C:
class attention H*N*d, similarity Np*Nr*C, fusion Nr*Np*C. The cost table of the paper's methods counts the similarity
alone; vitslim counts every matmul.
"""

from __future__ import annotations

import math

import torch
from torch.library import Library

NORM_EPSILON = 1e-6
"""Added to the length of a token before the division (TPS, section 3.2)."""


TIE_STEP = 2.0**-40
TIE_FLOOR = 1e-50
"""Far below the smallest float32, so that scores of exactly zero are ordered too."""


def class_attention(q: torch.Tensor, k: torch.Tensor, scale: float, prefix: int) -> torch.Tensor:
    """Return the attention of the class token to each patch token, averaged over heads.

    q, k: (B, H, N, d) float, the class token first. `prefix` counts the tokens that are not patches (class token,
    distillation token, registers): they take part in the softmax and are then left out.
    Returns (B, N - prefix), each entry in [0, 1].
    """
    logits = torch.matmul(q[:, :, :1], k.transpose(-2, -1)) * scale
    return torch.softmax(logits, dim=-1)[:, :, 0, prefix:].mean(dim=1)


def squeeze_tokens(x: torch.Tensor, score: torch.Tensor, keep: int) -> torch.Tensor:
    """Keep the patch tokens with the highest scores and add each other token to the most similar kept one.

    x: (B, P + N, C) float, P prefix tokens first, which pass unchanged. score: (B, N). keep: 1 to N.
    Returns (B, P + keep, C); kept tokens stay in their order. Of equal scores the lower index wins.
    No gradient reaches the scores: selection by rank has none. Raises ValueError for another `keep`.
    """
    patches = score.shape[1]
    if not 1 <= keep <= patches:
        raise ValueError(f"cannot keep {keep} of {patches} patch tokens")
    prefix = x.shape[1] - patches
    tokens = x[:, prefix:]
    order = torch.topk(_distinct(score), patches, dim=1)[1]
    kept = torch.topk(order[:, :keep], keep, dim=1, largest=False)[0]
    squeezed = fuse(_take(tokens, kept), _take(tokens, order[:, keep:]))
    return torch.cat([x[:, :prefix], squeezed], dim=1)


def _distinct(score: torch.Tensor) -> torch.Tensor:
    """Return scores in float64 with the same order, from [0, inf), and ties broken in favor of lower indices.

    torch.topk leaves the order of equal values open, and a stable sort has no ONNX form. Two float32 numbers differ by
    at least 2^-24 of the larger one, so relative steps of TIE_STEP (up to 2^14 tokens) never change their order.
    """
    patches = score.shape[1]
    lower_first = torch.arange(patches - 1, -1, -1, dtype=torch.float64, device=score.device)
    distinct: torch.Tensor = (score.to(torch.float64) + TIE_FLOOR) * (1.0 + lower_first * TIE_STEP)
    return distinct


def fuse(reserved: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    """Add every pruned token to its most similar reserved token (TPS, section 3.2, equations 4 to 6).

    reserved: (B, Nr, C), pruned: (B, Np, C), floats. With c the cosine similarity, a host r and its guests p become
    (e*r + sum exp(c)*p) / (e + sum exp(c)): the host counts as similarity 1 to itself. A host without guests is
    unchanged; of several hosts that are exactly equally similar each takes the guest. Returns (B, Nr, C).
    """
    similarity = torch.matmul(_unit(pruned), _unit(reserved).transpose(1, 2))
    matched = similarity == similarity.amax(dim=2, keepdim=True)
    weight = (torch.exp(similarity) * matched.to(similarity.dtype)).transpose(1, 2)
    total = weight.sum(dim=2, keepdim=True) + math.e
    return (reserved * math.e + torch.matmul(weight, pruned)) / total


def _unit(tokens: torch.Tensor) -> torch.Tensor:
    length: torch.Tensor = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
    return tokens / (length + NORM_EPSILON)


def _take(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return torch.gather(tokens, 1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))


def _register() -> Library:
    library = Library("vitslim", "FRAGMENT")  # type: ignore[no-untyped-call]
    signatures = {
        "class_attention(Tensor q, Tensor k, float scale, int prefix) -> Tensor": class_attention,
        "squeeze_tokens(Tensor x, Tensor score, int keep) -> Tensor": squeeze_tokens,
    }
    for signature, function in signatures.items():
        library.define(signature)  # type: ignore[no-untyped-call]
        library.impl(function.__name__, function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    return library


_LIBRARY = _register()
"""The operators stay registered as long as this object exists."""

CLASS_ATTENTION = torch.ops.vitslim.class_attention.default
SQUEEZE_TOKENS = torch.ops.vitslim.squeeze_tokens.default
