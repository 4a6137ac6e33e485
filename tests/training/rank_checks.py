"""Everything that `test_ranks.py` compares between one process and several ranks. Run it with torchrun, or call it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from vitslim.data import Dataset, load_data
from vitslim.graph.edits.insert_predictors import insert_predictors
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.ranks import rank
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Budget, DepGraph, DiffRate, Distill, Nipq, Nvit, Ptq, Qat
from vitslim.recipe.stages.prune import GroupSparsity
from vitslim.recipe.stages.training import Loss
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.quantize.histogram import Histogram
from vitslim.stages.quantize.observe import layer_inputs, observe, solvable_layers
from vitslim.stages.reconstruction.curvature import Curvature
from vitslim.stages.reconstruction.layerwise import LayerSolver
from vitslim.stages.registry import make_stage
from vitslim.training import Batch, hard_loss, predict, train
from vitslim.training.engine.rank_group import joined_ranks

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 10}
STEPS = 3
Checks = dict[str, list[torch.Tensor]]

# Plain gradient descent: where a gradient is rounding, AdamW turns its sign into a step of full size.
TRAIN = Train(epochs=1, batch=32, images=96, lr=1e-4, warmup=0, optimizer="sgd", clip=1e6, wd=0)
DISTILLED: dict[str, Any] = {"teacher": "dense", "loss": Loss(hard=1, soft=1, feature=1), "train": TRAIN}
AUGMENTED = TRAIN.model_copy(update={"augment": "strong", "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.2})
PREDICTED: dict[str, Any] = {"teacher": "dense", "loss": Loss(hard=1, soft=1, ratio=2, token=1), "train": TRAIN}
STAGES: dict[str, Any] = {
    "distill": Distill(**DISTILLED),
    "augmented": Distill(teacher="none", loss=Loss(soft=0), train=AUGMENTED),
    "accumulated": Distill(teacher="none", loss=Loss(soft=0), train=TRAIN.model_copy(update={"accumulate": 2})),
    "qat": Qat(method="qat", **DISTILLED),
    "nipq": Nipq(method="nipq", noise="uniform", quantized_epochs=0, **DISTILLED),
    "nipq-empirical": Nipq(method="nipq", noise="empirical", quantized_epochs=0, **DISTILLED),
    "dtps": Distill(**PREDICTED),
    "dynamicvit": Distill(**PREDICTED),
    "nvit": Nvit(method="nvit", budget=Budget(macs=0.8), interval=1, per_step=256, **DISTILLED),
    "depgraph": DepGraph(method="depgraph", pruning_ratio=0.25, importance="taylor", batches=2, batch=16,
                         group_sparsity=GroupSparsity(train=TRAIN)),
    "diffrate": DiffRate(method="diffrate", train=Train(epochs=1, batch=16, lr=0.01, wd=0, optimizer="sgd", clip=1e6)),
    "ptq": Ptq(method="ptq"),
}  # fmt: skip


def dense_graph() -> ModelGraph:
    """The model that all checks start from."""
    torch.manual_seed(0)
    return trace_timm("vit_tiny_patch16_224", dict(TINY))


@contextmanager
def recorded_gradients() -> Iterator[list[torch.Tensor]]:
    """Record the gradients of the first steps of every optimizer, one vector a step."""
    found: list[torch.Tensor] = []

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if len(found) < STEPS:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            found.append(torch.cat([w.grad.flatten() for w in weights if w.grad is not None]))

    handle = register_optimizer_step_pre_hook(record)
    try:
        yield found
    finally:
        handle.remove()


def run_stage(name: str, graph: ModelGraph, folder: Path, seed: int = 0) -> StageResult:
    """Apply a stage to the dense graph, which is also the teacher."""
    data = load_data(Data(kind="digits", calibration=32), graph.source, seed=0)
    context = StageContext(data, seed, Silent(), lambda _: StageResult(graph), folder)
    start = insert_predictors(graph, {"blocks.1": 8}, name) if name in {"dtps", "dynamicvit"} else graph
    return make_stage(STAGES[name]).apply(start, context)


def calibration_sums(graph: ModelGraph, folder: Path) -> list[torch.Tensor]:
    """Of the input of every layer over 70 calibration images: its limits, and the sums over its histogram."""
    data = load_data(Data(kind="digits", calibration=70), graph.source, seed=0)
    histograms = {name: Histogram() for name in layer_inputs(graph.module)}
    observe(graph, histograms, StageContext(data, 0, Silent(), lambda _: StageResult(graph), folder), "")
    return [sums_of(one) for one in histograms.values()]


def curvatures(graph: ModelGraph, images: Dataset) -> list[torch.Tensor]:
    """Both factors of the curvature of K-FAC of every layer, when no weight changes.

    Without biases, whose correction subtracts the mean: inputs that hardly differ would leave rounding alone.
    """
    found: list[torch.Tensor] = []

    def solve(_: str, weight: torch.Tensor, curvature: Curvature) -> torch.Tensor:
        found.extend([curvature.inputs, curvature.outputs])
        return weight

    names = solvable_layers(graph.module)
    pixels = torch.cat([batch for batch, _ in images.batches(8)])
    LayerSolver(pixels, Silent(), "", joint=names, draws=2, biases=False)(graph, names, solve)
    return found


def sums_of(histogram: Histogram) -> torch.Tensor:
    """The limits, the number of values, and the sums of their magnitudes and squares; a value may change its bin."""
    counts = histogram.counts
    centers = torch.linspace(-1, 1, len(counts), dtype=torch.float64) * histogram.range
    sums = [counts.sum(), (counts * centers.abs()).sum(), (counts * centers.square()).sum()]
    return torch.stack([*torch.tensor([histogram.low, histogram.high, histogram.range]).double(), *sums])


def seen_images(graph: ModelGraph, images: Dataset) -> torch.Tensor:
    """The positions of the images that this rank trains on, in three epochs with a last batch of 9 images."""
    seen: list[torch.Tensor] = []

    def objective(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        seen.append(batch.positions)
        return {"loss": hard_loss(logits, batch.labels)}

    config = Train(epochs=3, batch=16, warmup=0, optimizer="sgd")
    train(graph.copy().module, images, objective, config, 0, {}, Silent())
    return torch.cat(seen)


def checks(graph: ModelGraph, folder: Path, names: list[str]) -> Checks:
    """Return gradients by stage, and other tensors that must not depend on the number of ranks."""
    found: Checks = {}
    for name in names:
        with recorded_gradients() as gradients:
            result = run_stage(name, graph, folder)
        weights = torch.cat([weight.detach().flatten() for weight in result.graph.parameters().values()])
        found[name] = [*gradients, weights]
    digits = load_data(Data(kind="digits", calibration=30), graph.source, seed=0)
    found["calibration"] = [*calibration_sums(graph, folder), *curvatures(graph, digits.calibration)]
    outputs, labels = predict(graph.module, digits.val.balanced(101), 25, Silent(), "", by_ranks=True)
    found["evaluation"] = [outputs, labels]
    found["seen"] = [seen_images(graph, digits.train.balanced(41))]
    return found


def main(folder: Path, names: list[str], make: Callable[[], ModelGraph] = dense_graph) -> None:
    """Write the checks of this rank into a folder."""
    torch.set_num_threads(1)
    with joined_ranks():
        torch.save(checks(make(), folder, names), folder / f"{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
