"""The state of a training run on disk, so that one which was killed goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from vitslim.errors import InputError
from vitslim.files import write_whole

STATE_FILE = "training.safetensors"
STEP = "step"
MOMENTS = (STEP, "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a weight."""
EVERY_S = 60.0
"""Between two states within an epoch."""
WRITING_SHARE = 0.05
"""Of the time, at most, that goes into writing: where an epoch takes a second, not every one is kept."""

History = dict[str, list[float]]
"""Recorded scalars by name, one value a step."""


class Checkpoint:
    """Weights, moments of the optimizer and recorded losses in one file, which is always whole."""

    def __init__(
        self, folder: Path | None, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        """None as the folder keeps nothing and finds nothing."""
        self.path = folder / STATE_FILE if folder is not None else None
        self.parameters, self.optimizer = parameters, optimizer
        self.saved_at, self.writing_s = time.monotonic(), 0.0

    def load(self) -> History:
        """Bring weights and optimizer to the kept state, and give its history; empty where nothing was kept.

        Raises InputError for a damaged file, and for one of another model.
        """
        if self.path is None or not self.path.exists():
            return {}
        try:
            kept = _by_kind(load_file(self.path))
            with torch.no_grad():
                for name, weight in self.parameters.items():
                    weight.copy_(kept["weight"][name])
                    state = {key: kept[key][name] for key in MOMENTS if name in kept.get(key, {})}
                    # The optimizer wants its count of steps on the CPU, and moments where the weight is.
                    self.optimizer.state[weight] = {k: v if k == STEP else v.to(weight) for k, v in state.items()}
            return {name: values.tolist() for name, values in kept["history"].items()}
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise InputError(f"the kept training state '{self.path}' is damaged", "run again with --fresh") from error

    def save(self, history: Callable[[], History], *, due: bool) -> None:
        """Write the state if it is due and costs little, or if the last one is `EVERY_S` old; only then is the history
        asked for. Raises InputError where it cannot be written."""
        began = time.monotonic()
        age_s = began - self.saved_at
        wanted = age_s > EVERY_S or (due and age_s * WRITING_SHARE >= self.writing_s)
        if self.path is None or not wanted:
            return
        state = {f"history:{name}": torch.tensor(values, dtype=torch.float64) for name, values in history().items()}
        for name, weight in self.parameters.items():
            state[f"weight:{name}"] = weight.detach().contiguous()
            for key, value in self.optimizer.state.get(weight, {}).items():
                state[f"{key}:{name}"] = value.contiguous()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, save(state), "free some disk space")
        self.saved_at = time.monotonic()
        self.writing_s = self.saved_at - began


def _by_kind(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """`KIND:NAME` to kind and name."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(":")
        found.setdefault(kind, {})[name] = tensor
    return found
