"""The training state on disk, from which an interrupted training continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from vitslim.errors import InputError
from vitslim.files import write_atomically
from vitslim.ranks import rank

STATE_FILE = "training.safetensors"
OPTIMIZER = "optimizer."
"""Prefix of the kinds of state that the optimizer keeps of each parameter, such as `optimizer.exp_avg`."""
GROUPS = "groups"
STEP = "step"
"""Number of steps that some optimizers keep of each parameter, others of each parameter group."""
INTERVAL_S = 60.0
"""Longest time between two writes."""
SHORT_INTERVAL_S = 5.0
"""Time between two writes inside an epoch if writing is fast."""
WRITE_TIME_FRACTION = 0.01
"""Fraction of the training time that fast writing takes at most; short epochs are not all written."""

History = dict[str, list[float]]
"""Recorded scalars by name, one value per step."""


class Checkpoint:
    """Weights, their averages, optimizer state and recorded scalars in one file, which is written atomically."""

    def __init__(
        self,
        folder: Path | None,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        averages: Mapping[str, torch.Tensor],
    ) -> None:
        """Without a folder nothing is written and nothing is loaded. `averages` holds averaged weights by name."""
        self.path = folder / STATE_FILE if folder is not None else None
        self.parameters, self.optimizer, self.averages = parameters, optimizer, averages
        self.saved_at, self.write_s = time.monotonic(), 0.0

    def load(self) -> tuple[History, dict[str, torch.Tensor]]:
        """Restore weights, averages and optimizer in place; return the history and the state of the hook.

        Both are empty without a file.

        Raises InputError for a damaged file, and for the file of another model.
        """
        if self.path is None or not self.path.exists():
            return {}, {}
        try:
            state = _by_kind(load_file(self.path))
            with torch.no_grad():
                kept = {kind.removeprefix(OPTIMIZER): values for kind, values in state.items()
                        if kind.startswith(OPTIMIZER)}  # fmt: skip
                for name, weight in self.parameters.items():
                    weight.copy_(state["weight"][name])
                    found = {key: values[name] for key, values in kept.items() if name in values}
                    # Step counts stay on the CPU, moments are on the device of the weight.
                    self.optimizer.state[weight] = {
                        k: v if k == STEP else v.to(weight.device) for k, v in found.items()
                    }
                for number, steps in state.get(GROUPS, {}).items():
                    self.optimizer.param_groups[int(number)][STEP] = steps
                for name, average in self.averages.items():
                    average.copy_(state["average"][name])
            return {name: values.tolist() for name, values in state["history"].items()}, state.get("hook", {})
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise InputError(f"the training state '{self.path}' is damaged", "run again with --fresh") from error

    def save(self, history: Callable[[], History], hook: Mapping[str, torch.Tensor], *, epoch_ended: bool) -> None:
        """Write the state if the last write is `INTERVAL_S` old, and more often if writing is fast.

        Fast writing is also due at the end of an epoch, and when the last write is `SHORT_INTERVAL_S` old. Rank 0
        writes. `history` is called only if the state is written. `hook`: the state of the training hook by name.
        Raises InputError if the file cannot be written.
        """
        start = time.monotonic()
        age_s = start - self.saved_at
        is_fast = age_s * WRITE_TIME_FRACTION >= self.write_s
        is_due = age_s > INTERVAL_S or (is_fast and (epoch_ended or age_s > SHORT_INTERVAL_S))
        if self.path is None or not is_due or rank() > 0:
            return
        state = {f"history:{name}": torch.tensor(values, dtype=torch.float64) for name, values in history().items()}
        for name, weight in self.parameters.items():
            state[f"weight:{name}"] = weight.detach().contiguous()
            for key, value in self.optimizer.state.get(weight, {}).items():
                state[f"{OPTIMIZER}{key}:{name}"] = value.contiguous()
        groups = enumerate(self.optimizer.param_groups)
        state |= {f"{GROUPS}:{number}": group[STEP] for number, group in groups if STEP in group}
        state |= {f"average:{name}": average.contiguous() for name, average in self.averages.items()}
        state |= {f"hook:{name}": tensor.clone().contiguous() for name, tensor in hook.items()}  # may share memory
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, save(state), "free some disk space")
        self.saved_at = time.monotonic()
        self.write_s = self.saved_at - start


def _by_kind(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Group tensors named `KIND:NAME` by kind, then by name."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(":")
        found.setdefault(kind, {})[name] = tensor
    return found
