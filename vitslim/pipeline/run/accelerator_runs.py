"""Run the stages of a recipe as simulated accelerators compute them: accuracy, counts of work, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vitslim.backends.simulated.attention_layers import read_attention_layers
from vitslim.backends.simulated.simulator import ApproximatingSimulator
from vitslim.data import DataModule, Dataset
from vitslim.errors import StageError
from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.approximate import Approximation, approximate, run_approximation
from vitslim.graph.approximate.sites import find_sites
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.token_trace import patch_grid, squeeze_nodes
from vitslim.pipeline.run.evaluation import BATCH, evaluation_sets
from vitslim.pipeline.run.stored.store import StoredStage
from vitslim.pipeline.run.token_pictures import IMAGES, picture_of
from vitslim.progress import Progress
from vitslim.recipe.accelerators import Accelerator
from vitslim.results import AcceleratorResult, ApproximateAccuracy, Distribution, SqueezedBlock, TokenPicture
from vitslim.results.accelerator_counts import Counts, FactCounts, SpattenCounts
from vitslim.results.accelerator_result import LayerWork
from vitslim.stages.export.graph_passes.unused_tokens import remove_unused_tokens
from vitslim.workload import Workload, read_workload

NOTES: Mapping[type[Counts], str] = {
    SpattenCounts: "Covered patches were removed by cascade token pruning.",
    FactCounts: "The MLP of covered patches is INT4, that of the others INT8.",
}


def deployed_form(graph: ModelGraph, workload: Workload) -> ModelGraph:
    """Return the graph whose attentions have the queries of a file: without unused tokens if the file has none.

    Raises StageError if the attentions of graph and file differ.
    """
    expected = [(layer.queries, layer.keys) for layer in read_attention_layers(workload).layers]
    if _attention_sizes(graph) == expected:
        return graph
    shortened = graph.copy()
    remove_unused_tokens(shortened)
    shortened.forget_axes()
    if _attention_sizes(shortened) != expected:
        raise StageError("the attentions of the graph differ from those of its file", "export the model again")
    return shortened


def _attention_sizes(graph: ModelGraph) -> list[tuple[int, int]]:
    anatomy = find_anatomy(graph)
    found = [site.attention for site in find_sites(anatomy)]
    return [(anatomy.shapes[one.q][2], anatomy.shapes[one.k][2]) for one in found]


@dataclass(frozen=True)
class FunctionalRun:
    """One model as one accelerator computes it, on all images."""

    found: Approximation
    form: ModelGraph
    classes: Mapping[str, torch.Tensor]
    """Evaluation set to the predicted class of each image, int64 (n,)."""
    counts: Counts
    """Of the images of `val`."""


def run_functional(
    graph: ModelGraph, path: Path, settings: Accelerator, data: DataModule, progress: Progress, label: str
) -> FunctionalRun:
    """Run a model with the approximations of an accelerator on all evaluation sets; path: its ONNX file."""
    form = deployed_form(graph, read_workload(path))
    found = approximate(graph, settings, form)
    classes, counts = {}, {}
    for name, dataset in evaluation_sets(data).items():
        batches = progress.track(
            dataset.batches(BATCH), f"{label} on {settings.name}: accuracy on {name}", images=BATCH
        )
        logits, counts[name] = run_approximation(found, (images for images, _ in batches))
        classes[name] = logits.argmax(dim=1)
    return FunctionalRun(found, form, classes, counts["val"])


def accelerator_result(
    run: FunctionalRun, path: Path, simulator: ApproximatingSimulator, data: DataModule,
    exact: Mapping[str, torch.Tensor], seed: int,
) -> AcceleratorResult:  # fmt: skip
    """Return the results of a model on an accelerator.

    path: its ONNX file. exact: predicted classes without the approximations, by evaluation set.
    """
    accuracies = []
    for name, dataset in evaluation_sets(data).items():
        labels = torch.as_tensor(dataset.labels) if dataset.is_labeled else None
        accuracies.append(ApproximateAccuracy(
            dataset=name, n=len(dataset), top1=_top1(run.classes[name], labels),
            exact_top1=_top1(exact[name], labels), agreement=_share(run.classes[name], exact[name]),
        ))  # fmt: skip
    values = simulator.per_image(read_workload(path), run.counts)
    pictures = _pictures(run.found, run.form, data.val, seed)
    return AcceleratorResult(
        backend=simulator.name,
        accuracies=tuple(accuracies),
        distributions=tuple(distribution(name, one) for name, one in values.items()),
        layers=layer_counts(run.found.blocks, run.counts),
        pictures=pictures,
        picture_note=NOTES[type(run.counts)] if pictures else "",
    )


def accelerator_results(
    stages: Sequence[StoredStage], simulators: Sequence[ApproximatingSimulator], data: DataModule, seed: int,
    progress: Progress,
) -> tuple[dict[str, list[AcceleratorResult]], dict[tuple[str, str], Counts]]:  # fmt: skip
    """Return the results of each stage on each accelerator by name of the stage, and the counts by stage and backend.

    Targets with equal approximations share one run.
    """
    results: dict[str, list[AcceleratorResult]] = {stage.record.name: [] for stage in stages}
    counts: dict[tuple[str, str], Counts] = {}
    for stage in stages:
        name, runs = stage.record.name, dict[Accelerator, FunctionalRun]()
        for simulator in simulators:
            settings = simulator.approximation
            if settings not in runs:
                runs[settings] = run_functional(stage.graph, stage.onnx, settings, data, progress, name)
            run = runs[settings]
            results[name].append(accelerator_result(run, stage.onnx, simulator, data, stage.predictions, seed))
            counts[name, simulator.name] = run.counts
    return results, counts


def _top1(predicted: torch.Tensor, labels: torch.Tensor | None) -> float | None:
    return None if labels is None else _share(predicted, labels)


def _share(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first == second).float().mean().item()


def distribution(name: str, values: npt.ArrayLike) -> Distribution:
    """Return the distribution of one value for each image."""
    found = np.asarray(values, np.float64)
    low, p10, median, p90, high = np.quantile(found, (0, 0.1, 0.5, 0.9, 1)).tolist()
    return Distribution(name=name, mean=float(found.mean()), minimum=low, p10=p10, median=median, p90=p90, maximum=high)


def layer_counts(blocks: Sequence[str], counts: Counts) -> tuple[LayerWork, ...]:
    """Return the distribution of each count over the images, layer by layer; SpAtten's are sums over heads."""
    rows = []
    for place, block in enumerate(blocks):
        found = []
        for one in fields(counts):
            values = getattr(counts, one.name)[:, place]
            summed = values if values.ndim == 1 else values.sum(axis=1)
            found.append(distribution(one.name.replace("_", " "), summed))
        rows.append(LayerWork(layer=block, counts=tuple(found)))
    return tuple(rows)


def _pictures(found: Approximation, graph: ModelGraph, dataset: Dataset, seed: int) -> tuple[TokenPicture, ...]:
    """Return pictures of at most `IMAGES` images; empty if all tokens are treated alike or are no patches of a grid."""
    grid = patch_grid(graph)
    if grid is None or squeeze_nodes(graph) or found.tokens[0] - found.prefix != grid[0] * grid[1]:
        return ()
    samples = dataset.balanced(IMAGES, seed)
    images, _ = next(iter(samples.batches(IMAGES)))
    _, _, left = found(images)
    masks = [one[:, found.prefix :] for one in left]
    shown = [place for place in range(len(masks)) if not bool(masks[place].all())
             and (place == 0 or not torch.equal(masks[place], masks[place - 1]))]  # fmt: skip
    if not shown:
        return ()
    return tuple(
        picture_of(samples, image, grid, tuple(
            SqueezedBlock(block=found.blocks[place], kept=tuple(masks[place][image].nonzero()[:, 0].tolist()))
            for place in shown
        ))
        for image in range(len(samples))
    )  # fmt: skip
