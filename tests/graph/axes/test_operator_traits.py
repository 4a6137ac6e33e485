"""Traits of operators in the rule files."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitslim.graph.axes.operators import Trait, has_trait, operator_has
from vitslim.graph.axes.rules import TRAITS
from vitslim.graph.ops import fake_quant  # noqa: F401 - registers the operators

aten = torch.ops.aten


@pytest.mark.parametrize("trait", Trait)
def test_every_listed_operator_exists(trait: Trait) -> None:
    assert TRAITS[trait]
    for name in TRAITS[trait]:
        library, packet, overload = name.split(".")
        assert str(getattr(getattr(getattr(torch.ops, library), packet), overload)) == name


@pytest.mark.parametrize(
    ("operator", "trait", "expected"),
    [
        (aten.linear.default, Trait.LAYER, True),
        (aten.batch_norm.default, Trait.NORM, True),
        (aten.batch_norm.default, Trait.ROW_NORM, False),
        (aten.einsum.default, Trait.MATMUL, False),
        (aten.einsum.default, Trait.CONTRACTION, True),
        (aten.add.Scalar, Trait.ADDITION, False),
    ],
)
def test_traits_belong_to_overloads(operator: Any, trait: Trait, expected: bool) -> None:
    assert operator_has(operator, trait) == expected


def test_only_calls_of_operators_have_traits() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    added = graph.call_function(aten.add.Tensor, (x, x))
    assert has_trait(added, Trait.LAYER, Trait.ADDITION) and not has_trait(added, Trait.LAYER)
    assert not has_trait(added) and not has_trait(x, Trait.ADDITION) and not has_trait(1.0, Trait.ADDITION)
