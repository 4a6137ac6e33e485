"""Decisions about tokens agree with the results of the operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitslim.graph.axes.rules import TRAITS
from vitslim.graph.axes.traits import Trait
from vitslim.graph.ops.merge import (
    MATCH_ALTERNATE,
    MATCH_RANKED,
    MERGE_ALTERNATE,
    MERGE_RANKED,
    alternate_sizes,
    ranked_sizes,
    unit_sizes,
)
from vitslim.graph.ops.squeeze import FUSE_INATTENTIVE, KEEP_TOKENS, SQUEEZE_TOKENS, best_matches
from vitslim.graph.ops.token_decisions import DECISIONS, NONE, decision

PREFIX, PATCHES, KEEP = 2, 12, 5


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (3, 14, 8) with two prefix tokens, and scores (3, 12)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, PREFIX + PATCHES, 8, generator=generator)
    return x, torch.rand(3, PATCHES, generator=generator)


def test_every_operator_that_reduces_tokens_has_a_decision() -> None:
    assert {str(operator) for operator in DECISIONS} == TRAITS[Trait.SQUEEZE]


def operands(operator: torch._ops.OpOverload, x: torch.Tensor, score: torch.Tensor) -> tuple[Any, ...]:
    if operator == MERGE_ALTERNATE:
        match, resize, keep = MATCH_ALTERNATE(x[:, None], PREFIX, PATCHES - KEEP), alternate_sizes, PATCHES - KEEP
    elif operator == MERGE_RANKED:
        match, resize, keep = MATCH_RANKED(x, score, KEEP + 4, KEEP), ranked_sizes, KEEP
    else:
        return x, score, KEEP
    sizes = unit_sizes(x)
    return x, match, sizes, resize(sizes, match, PREFIX, keep), PREFIX


@pytest.mark.parametrize("operator", DECISIONS)
def test_each_result_is_the_token_at_its_origin_unless_others_were_fused_into_it(
    operator: torch._ops.OpOverload, tokens: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, score = tokens
    arguments = operands(operator, x, score)
    result = operator(*arguments)[:, PREFIX:]
    found = DECISIONS[operator](*arguments)
    assert found.origin.shape == result.shape[:2]
    assert found.destination.shape == score.shape
    for image in range(len(x)):
        for place, origin in enumerate(found.origin[image].tolist()):
            sources = (found.destination[image] == place).nonzero().flatten().tolist()
            if origin != NONE:
                assert origin in sources
                same = torch.allclose(result[image, place], x[image, PREFIX + origin], rtol=0, atol=1e-6)
                assert same == (sources == [origin])


@pytest.mark.parametrize("operator", [MERGE_ALTERNATE, MERGE_RANKED])
def test_merged_tokens_are_means_of_their_sources(
    operator: torch._ops.OpOverload, tokens: tuple[torch.Tensor, torch.Tensor]
) -> None:
    arguments = operands(operator, *tokens)
    result, found = operator(*arguments)[:, PREFIX:], DECISIONS[operator](*arguments)
    for image, patches in enumerate(tokens[0][:, PREFIX:]):
        for place, token in enumerate(result[image]):
            sources = found.destination[image] == place
            torch.testing.assert_close(token, patches[sources].mean(dim=0), rtol=0, atol=1e-5)


def test_squeezed_tokens_go_to_the_most_similar_kept_token(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, score = tokens
    found = DECISIONS[SQUEEZE_TOKENS](x, score, KEEP)
    unit = torch.nn.functional.normalize(x[:, PREFIX:], dim=-1)
    for image in range(len(x)):
        kept = score[image].topk(KEEP).indices.sort().values
        assert found.origin[image].tolist() == kept.tolist()
        similarity = unit[image] @ unit[image, kept].T
        assert found.destination[image].tolist() == similarity.argmax(dim=1).tolist()


def test_of_equally_similar_hosts_the_first_is_named() -> None:
    hosts = torch.tensor([[[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]])
    guest = torch.tensor([[[1.0, 1, 0]]])
    _, matched = best_matches(hosts, guest)
    assert matched.tolist() == [[[False, True, True]]]
    x = torch.cat([hosts[:, :1], hosts, guest], dim=1)
    score = torch.tensor([[0.9, 0.8, 0.7, 0.1]])
    assert DECISIONS[SQUEEZE_TOKENS](x, score, 3).destination.tolist() == [[0, 1, 2, 1]]


def test_dropped_and_fused_tokens(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, score = tokens
    kept = score.topk(KEEP).indices.sort().values
    dropped, fused = (DECISIONS[operator](x, score, KEEP) for operator in (KEEP_TOKENS, FUSE_INATTENTIVE))
    assert torch.equal(dropped.origin, kept)
    assert (dropped.destination == NONE).sum(dim=1).tolist() == [PATCHES - KEEP] * 3
    assert torch.equal(fused.origin[:, :-1], kept)
    assert (fused.origin[:, -1] == NONE).all()
    assert (fused.destination == KEEP).sum(dim=1).tolist() == [PATCHES - KEEP] * 3


def test_all_tokens_may_be_kept(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, score = tokens
    for operator in (SQUEEZE_TOKENS, KEEP_TOKENS):
        found = DECISIONS[operator](x, score, PATCHES)
        assert torch.equal(found.origin, found.destination)
        assert found.origin.tolist() == [list(range(PATCHES))] * 3


def test_a_decision_lists_the_destination_of_every_token() -> None:
    origin, guests, hosts = torch.tensor([[3, 0, NONE]]), torch.tensor([[2, 4]]), torch.tensor([[0, 2]])
    assert decision(5, origin, guests, hosts).destination.tolist() == [[1, NONE, 0, 0, 2]]
