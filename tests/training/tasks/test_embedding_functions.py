"""Feature extraction: cosine, nearest neighbors, distance and gradients of embeddings, against values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vitslim.errors import StageError
from vitslim.training.tasks import MapComparison, Predicted
from vitslim.training.tasks.embeddings import Embeddings, cosines, nearest, vote_of_neighbors

NO_LABELS = torch.tensor([-1, -1])


def angle(*degrees: float) -> Tensor:
    """Unit vectors in the plane."""
    radians = torch.tensor(degrees) * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_scores_compare_with_the_dense_model_and_its_neighbors() -> None:
    dense, found = angle(0, 90), 3 * angle(60, 90)
    references, dense_references = angle(10, 80, 200), angle(10, 80, 200)
    scores = Embeddings({"features": (2,)}).scores(
        Predicted(found, NO_LABELS), dense, Predicted(references, -torch.ones(3).long()), dense_references
    )
    assert scores == {"cosine": pytest.approx((0.5 + 1) / 2), "neighbor_agreement": 0.5}


def test_neighbors_are_found_by_the_calibration_embeddings_of_each_model() -> None:
    """The compressed model turned all embeddings by 90 degrees: cosines are zero, neighbors are the same."""
    dense, references = angle(0, 70, 100), angle(10, 80, 200)
    turned, turned_references = angle(90, 160, 190), angle(100, 170, 290)
    scores = Embeddings({"features": (2,)}).scores(
        Predicted(turned, -torch.ones(3)), dense, Predicted(turned_references, -torch.ones(3)), references
    )
    assert scores["cosine"] == pytest.approx(0, abs=1e-6)
    assert scores["neighbor_agreement"] == 1


def test_the_dense_model_has_the_accuracy_of_its_neighbors_alone() -> None:
    calibration = Predicted(angle(0, 5, 90, 95), torch.tensor([2, 2, 0, 0]))
    scores = Embeddings({"features": (2,)}).scores(
        Predicted(angle(20, 80, 70), torch.tensor([2, 0, 2])), None, calibration, None
    )
    assert scores == {"knn_top1": pytest.approx(2 / 3)}


def test_votes_of_neighbors_are_weighted_by_similarity() -> None:
    """One reference at 0 degrees outvotes two at 60: exp(1 / 0.07) against 2 exp(0.5 / 0.07)."""
    assert vote_of_neighbors(angle(0), angle(0, 60, -60), torch.tensor([1, 0, 0])).tolist() == [1]
    assert nearest(angle(1, 59), angle(0, 60)).tolist() == [0, 1]
    assert nearest(angle(0, 10, 90), angle(0, 10, 90), others=True).tolist() == [1, 0, 1]
    assert cosines(torch.zeros(1, 3), torch.ones(1, 3)).tolist() == [0]


def test_the_distance_is_relative_to_the_norm_of_each_output() -> None:
    task = Embeddings({"features_0": (2, 1, 1), "features_1": (1,)})
    teacher, outputs = torch.tensor([[3.0, 4.0, 100.0]]), torch.tensor([[3.0, 4.5, 90.0]])
    assert task.soft_loss(outputs, teacher).item() == pytest.approx((0.25 / 25 + 100 / 10_000) / 2)
    assert task.soft_loss(teacher, teacher).item() == 0
    for one in (task.hard_loss, lambda outputs, labels: task.teacher_labels(outputs)):
        with pytest.raises(StageError, match="feature extractor"):
            one(outputs, torch.zeros(1))


def test_importance_without_labels_is_the_change_of_the_outputs() -> None:
    """E (g . d)^2 over random combinations is |J d|^2 / |e|^2 for the relative change of one embedding."""
    torch.manual_seed(0)
    weight = torch.randn(5, 4, requires_grad=True)
    x, change = torch.randn(1, 4), torch.randn(5, 4)
    outputs, generator = x @ weight.T, torch.Generator().manual_seed(0)
    task = Embeddings({"features": (5,)})
    found = []
    for _ in range(4000):
        loss = task.importance_loss(outputs, NO_LABELS, generator)
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        found.append(((gradient * change).sum() ** 2).item())
    expected = ((x @ change.T).square().sum() / outputs.square().sum()).item()
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.1)


def test_images_are_divided_along_the_direction_in_which_features_differ_most() -> None:
    features = torch.cat([torch.tensor([[5.0, 0.1]] * 3), torch.tensor([[-5.0, 0.2]] * 3)])
    groups = Embeddings({"features": (2,)}).groups(features)
    assert len(set(groups[:3].tolist())) == len(set(groups[3:].tolist())) == 1
    assert groups[0] != groups[3]


def test_sampled_answers_have_the_gradients_of_a_gaussian() -> None:
    outputs = torch.randn(3, 4, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    scalars = Embeddings({"features": (4,)}).log_likelihoods(outputs, 500, generator)
    (gradients,) = torch.autograd.grad(scalars, outputs, torch.eye(len(scalars)), is_grads_batched=True)
    moments = torch.einsum("dbi,dbj->ij", gradients, gradients) / (500 * 3)
    torch.testing.assert_close(moments, torch.eye(4), rtol=0, atol=0.15)
    with pytest.raises(StageError, match="not finite"):
        Embeddings({}).log_likelihoods(outputs * math.inf, 1, generator)


def test_maps_are_compared_batch_by_batch() -> None:
    torch.manual_seed(0)
    dense = [torch.randn(6, 2, 3, 3), torch.randn(6, 4)]
    found = [one + 0.1 * torch.randn_like(one) for one in dense]
    comparison = MapComparison(["a", "b"])
    for rows in (slice(0, 4), slice(4, 6)):
        comparison.add([one[rows] for one in dense], [one[rows] for one in found])
    scores = comparison.scores()
    for name, before, after in zip("ab", dense, found, strict=True):
        expected = 10 * math.log10(before.square().sum() / (before - after).square().sum())
        assert scores[f"sqnr_db.{name}"] == pytest.approx(expected, rel=1e-5)
    each = [
        torch.nn.functional.cosine_similarity(x.flatten(1), y.flatten(1)).mean()
        for x, y in zip(dense, found, strict=True)
    ]
    assert scores["cosine"] == pytest.approx(float(sum(each)) / 2, rel=1e-5)


def test_equal_maps_have_no_finite_sqnr() -> None:
    comparison = MapComparison(["a"])
    comparison.add([torch.ones(2, 3)], [torch.ones(2, 3)])
    assert comparison.scores() == {"cosine": pytest.approx(1)}
