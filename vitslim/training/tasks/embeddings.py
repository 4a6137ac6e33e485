"""Feature extraction: outputs are compared with those of another model, and images with their nearest neighbors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from vitslim.errors import StageError
from vitslim.graph.outputs import parts
from vitslim.training.engine.collectives import share_of_total
from vitslim.training.tasks.contract import Predicted

NEIGHBORS = 20
TEMPERATURE = 0.07
"""Number of neighbors, and temperature of their votes, of DINO (Caron et al., ICCV 2021)."""
ALIKE = 0.95
"""Cosine similarity from which two outputs count as equal when a file is compared with its graph."""
TINY = 1e-12


class Embeddings:
    """The functions of `task: features`; outputs are embeddings (b, features), or all maps of an image in one row."""

    agreement = "neighbor_agreement"
    loss_name = "distance"
    uses_calibration = True

    def __init__(self, outputs: Mapping[str, tuple[int, ...]]) -> None:
        """`outputs`: shape of each output for one image."""
        self._outputs = outputs

    def hard_loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:  # noqa: ARG002
        """Raise StageError: there is no classifier."""
        raise StageError("a feature extractor has no loss with labels", "set loss.hard to 0")

    def soft_loss(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:  # noqa: ARG002
        """Return the squared distance from the teacher's outputs over their squared norm, averaged over outputs."""
        ours, theirs = parts(outputs, self._outputs), parts(teacher, self._outputs)
        ratios = [
            (mine - theirs[name]).square().sum() / share_of_total(theirs[name].square().sum(), len(outputs), least=TINY)
            for name, mine in ours.items()
        ]
        return torch.stack(ratios).mean()

    def describe_loss(self, value: float) -> str:
        """Return the value with the norm that it is relative to."""
        return f"{value:.3g} of their squared norm"

    def teacher_labels(self, outputs: Tensor) -> Tensor:  # noqa: ARG002
        """Raise StageError: there is no classifier."""
        raise StageError("a feature extractor predicts no labels", "set loss.hard to 0")

    def agrees(self, first: Tensor, second: Tensor) -> Tensor:
        """Return whether the nearest of the other images is the same; False for a single image."""
        if len(first) < 2:
            return torch.zeros(len(first), dtype=torch.bool)
        return nearest(first, first, others=True) == nearest(second, second, others=True)

    def nearly_agrees(self, expected: Tensor, found: Tensor) -> Tensor:
        """Return whether the cosine similarity of every output is at least ALIKE."""
        ours, theirs = parts(found, self._outputs), parts(expected, self._outputs)
        alike = [cosines(mine, theirs[name]) >= ALIKE for name, mine in ours.items()]
        return torch.stack(alike).all(dim=0)

    def importance_loss(self, outputs: Tensor, labels: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Return a random combination of the outputs, each of unit norm, averaged over images.

        The distance to the dense outputs has a gradient of zero at the dense model. The squared gradient of a random
        combination is in expectation the second-order change of that distance, so labels are not needed.
        """
        found = parts(outputs, self._outputs).values()
        sums = [
            (one * torch.randn(one.shape, generator=generator).to(one)).sum(dim=1)
            / torch.linalg.vector_norm(one.detach(), dim=1).clamp(min=TINY)
            for one in found
        ]
        return torch.stack(sums).sum(dim=0).mean()

    def log_likelihoods(self, outputs: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Return random combinations of the outputs: the gradients of a Gaussian likelihood of unit variance."""
        if not bool(outputs.isfinite().all()):
            raise StageError(
                "the outputs of calibration images are not finite", "check the images and model.checkpoint"
            )
        directions = (torch.randn(outputs.shape, generator=generator).to(outputs) for _ in range(draws))
        return torch.stack([(outputs * direction).sum() for direction in directions])

    def groups(self, outputs: Tensor) -> Tensor:
        """Return 0 or 1: the half of the images along the direction in which the outputs differ most."""
        centered = (outputs - outputs.mean(dim=0)).double()
        along: Tensor = torch.linalg.eigh(centered @ centered.T).eigenvectors[:, -1]
        return (along > along.median()).long()

    def stored(self, outputs: Tensor) -> Tensor:
        """Return the embeddings."""
        return outputs

    def scores(
        self, found: Predicted, dense: Tensor | None, calibration: Predicted | None, dense_calibration: Tensor | None
    ) -> dict[str, float]:
        """Return mean cosine similarity, nearest-neighbor agreement, and k-NN top-1 if there are labels."""
        scores: dict[str, float] = {}
        if dense is not None:
            scores["cosine"] = cosines(found.values, dense).mean().item()
        if calibration is None:
            return scores
        if dense is not None and dense_calibration is not None:
            same = nearest(found.values, calibration.values) == nearest(dense, dense_calibration)
            scores["neighbor_agreement"] = same.double().mean().item()
        if _are_labels(found.labels) and _are_labels(calibration.labels):
            predicted = vote_of_neighbors(found.values, calibration.values, calibration.labels)
            scores["knn_top1"] = (predicted == found.labels).double().mean().item()
        return scores


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine similarity of the rows of two float tensors (n, k): float64 (n,), 0 for a row of zeros."""
    return functional.cosine_similarity(first.double(), second.double(), dim=1)


def similarities(queries: Tensor, references: Tensor) -> Tensor:
    """Return the cosine similarity of each query (n, k) to each reference (m, k): float64 (n, m)."""
    return functional.normalize(queries.double(), dim=1) @ functional.normalize(references.double(), dim=1).T


def nearest(queries: Tensor, references: Tensor, others: bool = False) -> Tensor:
    """Return the position of the reference (m, k) with the largest cosine similarity to each query (n, k): int64 (n,).

    others: the queries are the references, and each takes the nearest of the others.
    """
    found = similarities(queries, references)
    return (found.fill_diagonal_(-2) if others else found).argmax(dim=1)


def vote_of_neighbors(queries: Tensor, references: Tensor, labels: Tensor) -> Tensor:
    """Return the label of each query (n, k) by its nearest references (m, k), whose labels are int64 (m,): int64 (n,).

    At most NEIGHBORS references vote, with weights exp(cosine / TEMPERATURE). Source: DINO (Caron et al., ICCV 2021).
    """
    found, places = similarities(queries, references).topk(min(NEIGHBORS, len(references)), dim=1)
    votes = torch.zeros(len(queries), int(labels.max()) + 1, dtype=torch.float64)
    votes.scatter_add_(1, labels[places], (found / TEMPERATURE).exp())
    return votes.argmax(dim=1)


def _are_labels(labels: Tensor) -> bool:
    """Return whether every image has one label."""
    return labels.ndim == 1 and len(labels) > 0 and bool((labels >= 0).all())
