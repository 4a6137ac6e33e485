"""One directory per stage, named by content key. A directory appears only when its stage has finished."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from vitslim.errors import InputError, UsageError
from vitslim.files import MODEL_FILE, exclusive, replace_atomically
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph, save_graph
from vitslim.pipeline.run_folders import RECORD_FILE
from vitslim.ranks import rank
from vitslim.results import StageRecord
from vitslim.stages.contract import StageResult
from vitslim.training.engine.collectives import on_first_rank, wait_for_ranks

PREDICTIONS_FILE = "predictions.safetensors"
VISIBLE_S = 120.0
"""Longest time until another machine sees a file."""


def wait_for_file(path: Path) -> Path:
    """Return the path of a file that rank 0 wrote, when this rank sees it: network file systems show it after seconds.

    Raises InputError if it does not appear.
    """
    stop = time.monotonic() + VISIBLE_S
    while not path.exists():
        if time.monotonic() > stop:
            message = f"rank {rank()} does not see '{path}', which rank 0 wrote"
            raise InputError(message, "choose a folder with --out that all machines share")
        time.sleep(0.1)
    return path


@dataclass
class StoredStage:
    """A finished stage on disk. Its graph is loaded on first use."""

    folder: Path
    record: StageRecord

    @cached_property
    def graph(self) -> ModelGraph:
        """The model after the stage."""
        return load_graph(self.folder)

    @property
    def onnx(self) -> Path:
        """The ONNX file of the model after the stage."""
        return self.folder / MODEL_FILE

    @cached_property
    def predictions(self) -> dict[str, torch.Tensor]:
        """Evaluation set to what the task stores of the outputs, such as predicted classes, int64 (n,)."""
        return load_file(self.folder / PREDICTIONS_FILE)

    def result(self) -> StageResult:
        """Return the result of the stage, for later stages."""
        found = self.record
        return StageResult(
            self.graph, found.changes, found.skipped, found.metrics, bits=found.bits, widths=found.widths
        )


class StageStore:
    """The stage directories of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def open(self, fresh: bool) -> Iterator[None]:
        """Create the folder, or empty it for a fresh run, and keep other runs out of it until the context ends.

        Of several ranks the first does. Raises UsageError if the folder cannot be written, or while another run uses
        it.
        """
        with ExitStack() as stack:
            if rank() > 0:
                wait_for_ranks()
                yield
                return
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive(self.folder))
                for path in self.folder.iterdir() if fresh else ():
                    if path.is_dir():
                        shutil.rmtree(path)
            except OSError as error:
                raise UsageError(
                    f"cannot write to '{self.folder}': {error.strerror}", "choose another folder with --out"
                ) from error
            wait_for_ranks()
            yield

    def find(self, name: str, key: str) -> StoredStage | None:
        """Return the finished stage with this key; None when there is none.

        All ranks find what rank 0 finds. Raises InputError for a damaged stage, and if another rank does not see it.
        """
        if not on_first_rank((self._folder(name, key) / RECORD_FILE).exists):
            return None
        if rank() > 0:
            wait_for_file(self._folder(name, key) / RECORD_FILE)
        folder = self._folder(name, key)
        try:
            record = StageRecord.model_validate_json((folder / RECORD_FILE).read_bytes())
        except ValueError as error:
            raise InputError(f"'{folder / RECORD_FILE}' is corrupt", "run again with --fresh") from error
        return StoredStage(folder, record.model_copy(update={"cached": True}))

    @contextmanager
    def writing(self, name: str, key: str) -> Iterator[Path]:
        """Yield a scratch folder, which becomes the folder of the stage on success and is deleted on an error.

        That of other ranks than the first is deleted in any case.
        """
        if rank() > 0:
            with TemporaryDirectory() as folder:
                yield Path(folder)
            return
        with replace_atomically(self._folder(name, key)) as scratch:
            yield scratch
        shutil.rmtree(self.kept(name, key), ignore_errors=True)

    def kept(self, name: str, key: str) -> Path:
        """Return the folder of checkpoints of an unfinished stage; the stage creates it if needed."""
        target = self._folder(name, key)
        return target.with_name(f".{target.name}.kept")

    def stored(
        self, scratch: Path, graph: ModelGraph, predictions: dict[str, torch.Tensor], record: StageRecord
    ) -> StoredStage:
        """Write the files of a stage into its scratch folder, and return the stage."""
        if rank() == 0:
            save_graph(graph, scratch)
            save_file(predictions, scratch / PREDICTIONS_FILE)
            (scratch / RECORD_FILE).write_text(record.model_dump_json(indent=1), encoding="utf-8")
        stage = StoredStage(self._folder(record.name, record.key), record)
        stage.graph, stage.predictions = graph, predictions
        return stage

    def _folder(self, name: str, key: str) -> Path:
        return self.folder / f"{name}-{key}"
