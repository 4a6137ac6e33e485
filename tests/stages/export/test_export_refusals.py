"""Export refuses logits that differ, and paths that cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitslim.errors import InputError, StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.stages.export.check import check_parity, compare_outputs
from vitslim.stages.export.onnx_export import export_onnx


def test_differing_logits_are_caught_but_ties_are_not() -> None:
    expected = torch.tensor([[3.0, 1.0, 0.0]] * 20)
    close = expected + 1e-6
    check_parity(compare_outputs(expected, close), exact=True)
    with pytest.raises(StageError, match="differ"):
        check_parity(compare_outputs(expected, expected + 0.01), exact=True)
    with pytest.raises(StageError, match="agrees"):
        check_parity(compare_outputs(expected, expected.flip(1)), exact=False)
    with pytest.raises(StageError, match="not finite"):
        check_parity(compare_outputs(expected, expected * torch.nan), exact=False)
    tie = torch.tensor([[3.0, 2.99, 0.0]] * 20)
    parity = compare_outputs(tie, torch.tensor([[2.99, 3.0, 0.0]] * 20))
    check_parity(parity, exact=False)
    assert (parity.agreement, parity.agreement_but_ties) == (0, 1)


@pytest.mark.parametrize(("others", "refused"), [(4, False), (6, False), (8, True)])
def test_few_differences_on_few_images_are_within_chance(others: int, refused: bool) -> None:
    """60 of 64 equal predictions do not prove an agreement below 95 %."""
    expected = torch.tensor([[3.0, 1.0, 0.0]] * 64)
    found = torch.cat([expected[:others].flip(1), expected[others:]])
    if refused:
        with pytest.raises(StageError, match="agrees"):
            check_parity(compare_outputs(expected, found), exact=False)
    else:
        check_parity(compare_outputs(expected, found), exact=False)


def test_a_path_that_cannot_be_written_leaves_nothing(tiny_graph: ModelGraph, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        export_onnx(tiny_graph, tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
