"""Losses and results of a run for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from vitslim.errors import UsageError
from vitslim.progress import STAGE_ENDED, STAGE_STARTED, Forwarding, Progress


class TensorBoardLog(Forwarding):
    """Progress that also writes scalars: the values of each training by step, and the results of each stage."""

    def __init__(self, inner: Progress, folder: Path) -> None:
        """Open a log in the folder. Raises UsageError without the package `tensorboard`."""
        super().__init__(inner)
        if find_spec("tensorboard") is None:
            hint = "install it: pip install 'vitslim[tensorboard]'"
            raise UsageError("--tensorboard needs the package `tensorboard`, which is not installed", hint)
        from torch.utils.tensorboard import SummaryWriter

        self.writer, self.stage, self.stages = SummaryWriter(str(folder)), "", 0

    def record(self, label: str, step: int, values: Mapping[str, float]) -> None:
        """Write each value as the scalar STAGE/LABEL/NAME."""
        super().record(label, step, values)
        for name, value in values.items():
            self.writer.add_scalar("/".join(filter(None, (self.stage, label, name))), value, step)

    def emit(self, event: str, values: Mapping[str, object]) -> None:
        """Write the results of a stage at its number: the scalars DATASET/METRIC."""
        super().emit(event, values)
        if event == STAGE_STARTED:
            self.stage = str(values["stage"])
        elif event == STAGE_ENDED:
            accuracies = values.get("accuracies")
            for one in accuracies if isinstance(accuracies, list) else ():
                for name, value in one["metrics"].items():
                    self.writer.add_scalar(f"{one['dataset']}/{name}", value, self.stages)
            self.stages, self.stage = self.stages + 1, ""

    def close(self) -> None:
        """Write everything to disk."""
        self.writer.close()
