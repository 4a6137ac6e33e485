"""One stage from start to finish: reuse it when it is stored, else apply, check, evaluate, export and store it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from vitslim.data import DataModule
from vitslim.errors import InputError, Problem, StageError, VitslimError
from vitslim.files import MODEL_FILE, file_digest
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.outputs import Outputs
from vitslim.graph.sketch import cost
from vitslim.pipeline.bit_latency import gemm_latency
from vitslim.pipeline.run.deployment import make_deployment
from vitslim.pipeline.run.evaluation import Evaluator, Predictions, Reference, forward_of
from vitslim.pipeline.run.stored.keys import snapshot_key
from vitslim.pipeline.run.stored.stage_files import FLOAT_FILE, StageFile, exported_form, file_to_export, is_quantized
from vitslim.pipeline.run.stored.store import StageStore, StoredStage, wait_for_file
from vitslim.pipeline.table_file import stage_table
from vitslim.progress import Progress
from vitslim.ranks import rank, rank_count
from vitslim.recipe.accelerators import Accelerator
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stage_config import Phase, StageConfig
from vitslim.results import RESOLVED_KEY, Accuracy, LayerNote, StageRecord
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.registry import make_stage
from vitslim.training import SECONDS
from vitslim.training.engine.collectives import on_first_rank

DENSE = "00-dense"


@dataclass
class StageRunner:
    """Runs the stages of one recipe in order; `finished` holds their results, the dense model first."""

    recipe: Recipe
    data: DataModule
    store: StageStore
    progress: Progress
    finished: list[StoredStage]
    notes: Mapping[int, LayerNote] = field(default_factory=dict)
    """Notes on resolved keys, by position of the stage in the recipe."""

    def run_dense(self, graph: ModelGraph, key: str, notes: tuple[LayerNote, ...] = ()) -> None:
        """Evaluate and export the dense model; `notes` are on resolved keys."""
        stored = self.store.find(DENSE, key)
        if stored is None:
            with self.store.writing(DENSE, key) as scratch:
                result = StageResult(graph, changes=(*_weights_notes(graph), *notes))
                stored = self._keep(scratch, result, DENSE, "dense", "", key, time.monotonic())
        self.finished.append(self._shared(stored, DENSE, key))

    def run_stage(self, config: StageConfig, key: str, accelerator: Accelerator | None = None) -> None:
        """Apply one stage of the recipe to the result of the stage before it.

        accelerator: the approximations under which it trains; None without any.
        """
        name = stage_name(len(self.finished), config)
        stored = self.store.find(name, key)
        if stored is None:
            self.progress.say(f"{name}: {config.method}")
            started = time.monotonic()
            with self.store.writing(name, key) as scratch:
                result = self._apply(config, name, scratch, self.store.kept(name, key), accelerator)
                # Before the stage itself, whose folder shows that all of them are finished.
                for snapshot, found in result.snapshots.items():
                    self._keep_snapshot(config, name, key, snapshot, found, started)
                stored = self._keep(scratch, result, name, config.kind, config.method, key, started)
        else:
            self.progress.say(f"{name}: reused")
            stored = self._with_current_file(stored)
        self.finished.append(self._shared(stored, name, key))

    def _shared(self, stored: StoredStage, name: str, key: str) -> StoredStage:
        """Return the stage as rank 0 stored it, so that all ranks continue with the same bits."""
        if rank_count() == 1:
            return stored
        found = self.store.find(name, key)
        return found if found is not None and rank() > 0 else stored

    def at_snapshot(self, snapshot: str, key: str) -> StageRunner:
        """Return a runner whose last finished stage is a snapshot of this one's. key: that of the last stage.

        Raises InputError if the folder of the snapshot is missing.
        """
        name, own = snapshot_stage(self.finished[-1].record.name, snapshot), snapshot_key(key, snapshot)
        stored = self.store.find(name, own)
        if stored is None:
            raise InputError(f"the snapshot '{snapshot}' is missing among the finished stages", "run with --fresh")
        current = self._shared(self._with_current_file(stored), name, own)
        return replace(self, finished=[*self.finished[:-1], current])

    def _keep_snapshot(
        self, config: StageConfig, stage: str, key: str, snapshot: str, result: StageResult, started: float
    ) -> None:
        name, own = snapshot_stage(stage, snapshot), snapshot_key(key, snapshot)
        with self.store.writing(name, own) as scratch:
            self._keep(scratch, result, name, config.kind, config.method, own, started)

    def _apply(
        self, config: StageConfig, name: str, scratch: Path, keep: Path, accelerator: Accelerator | None
    ) -> StageResult:
        position = len(self.finished) - 1
        table = stage_table(config, position)
        stage, before = make_stage(config, table, gemm_latency(config)), self.finished[-1].graph
        deployment = make_deployment(self.recipe, self.data, self.progress)
        context = StageContext(
            self.data, self.recipe.seed, self.progress, self._result, scratch, deployment, keep, accelerator,
            file_to_export(self.recipe, self.finished[-1]), self._outputs_of,
        )  # fmt: skip
        torch.manual_seed(self.recipe.seed)
        try:
            # Rank 0 alone exports; the other ranks read its file.
            is_idle = config.phase is Phase.EXPORT and rank() > 0
            result = StageResult(before) if is_idle else stage.apply(before, context)
            broken = [] if is_idle else stage.ensures(before, result.graph)
        except VitslimError as error:
            error.message = f"stage {name} (after {self.finished[-1].record.name}): {error.message}"
            raise
        if broken:
            raise StageError(f"stage {name} violated its contract: {_first(broken)}", broken[0].hint)
        resolved = (self.notes[position],) if position in self.notes else ()
        return replace(result, changes=(*resolved, *result.changes))

    def _keep(
        self, scratch: Path, result: StageResult, name: str, kind: str, method: str, key: str, started: float
    ) -> StoredStage:
        is_exported = kind == "export" or is_quantized(result.graph)
        form = exported_form(self.recipe) if is_exported else FLOAT_FILE
        onnx, size = on_first_rank(lambda: self._written(form, result.graph, scratch))
        accuracies, predictions = self._evaluated(wait_for_file(onnx), result.graph, name)
        record = StageRecord(
            name=name,
            kind=kind,
            method=method,
            # Training that went on after a pause has kept the time of all of its steps.
            seconds=max(time.monotonic() - started, result.metrics.get(SECONDS, 0)),
            key=key,
            cost=cost(result.graph),
            onnx_bytes=size,
            onnx_form=form.key if is_exported else None,
            accuracies=accuracies,
            changes=result.changes,
            skipped=result.skipped,
            metrics=result.metrics,
            bits=result.bits,
            widths=result.widths,
        )
        return self.store.stored(scratch, result.graph, predictions, record)

    def _written(self, form: StageFile, graph: ModelGraph, folder: Path) -> tuple[Path, int]:
        """Return the ONNX file in the folder of a stage, after writing it if the stage has not, and its bytes."""
        onnx = folder / MODEL_FILE
        if not onnx.exists():
            form.write(graph, onnx, self.data.calibration.class_names)
        return onnx, onnx.stat().st_size

    def _evaluated(self, onnx: Path, graph: ModelGraph, name: str) -> tuple[tuple[Accuracy, ...], Predictions]:
        """Evaluate a file; one that equals that of the stage before has its results."""
        before = self.finished[-1] if len(self.finished) > 1 else None
        if before is not None:
            files = before.onnx, onnx
            if on_first_rank(lambda: len({file_digest(file) for file in files}) == 1):
                return before.record.accuracies, before.predictions
        return Evaluator(self.data, graph.source, self.progress, self._reference()).evaluate(onnx, name)

    def _with_current_file(self, stored: StoredStage) -> StoredStage:
        """Return a finished stage whose file has the form of the export stage, which is no part of the stage's key."""
        record = stored.record
        if record.onnx_form in {None, exported_form(self.recipe).key}:
            return stored
        started = time.monotonic() - record.seconds
        with self.store.writing(record.name, record.key) as scratch:
            written = self._keep(
                scratch, stored.result(), record.name, record.kind, record.method, record.key, started
            )  # fmt: skip
        written.record = written.record.model_copy(update={"cached": True})
        return written

    def _reference(self) -> Reference | None:
        """Return the dense model; None before it is evaluated itself."""
        if not self.finished:
            return None
        dense = self.finished[0]
        return Reference(dense.predictions, dense.onnx)

    def _result(self, name: str) -> StageResult:
        return self._stage(name).result()

    def _outputs_of(self, name: str) -> Callable[[torch.Tensor], Outputs] | None:
        """Return the file of an earlier float stage in ONNX Runtime."""
        stage = self._stage(name)
        return forward_of(stage.onnx) if stage.record.onnx_form is None else None

    def _stage(self, name: str) -> StoredStage:
        if name == "dense":
            return self.finished[0]
        if name == "previous":
            return self.finished[-1]
        return self.finished[find_stage(self.recipe.stages[: len(self.finished) - 1], name) + 1]


def stage_name(position: int, config: StageConfig) -> str:
    """`01-prune`, or `01-NAME` for a stage that the recipe names."""
    return f"{position:02d}-{config.name or config.kind}"


def snapshot_stage(stage: str, snapshot: str) -> str:
    """`01-prune-SNAPSHOT`: name of a snapshot of a stage."""
    return f"{stage}-{snapshot}"


def find_stage(stages: Iterable[StageConfig], name: str) -> int:
    """Position of the last stage that the recipe calls `name`."""
    found = [i for i, config in enumerate(stages) if name in {config.name, config.kind}]
    if not found:
        raise StageError(f"no earlier stage is called '{name}'", "give the stage a `name` in the recipe")
    return found[-1]


def _first(problems: list[Problem]) -> str:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{problems[0].where}: {problems[0].message}{more}"


def _weights_notes(graph: ModelGraph) -> tuple[LayerNote, ...]:
    """Return how the checkpoint of the dense model was read."""
    return tuple(LayerNote(layer=RESOLVED_KEY, result="model.checkpoint", reason=one) for one in graph.source.weights)
