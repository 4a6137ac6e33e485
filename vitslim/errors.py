"""The exceptions of vitslim. Each class has the exit code that the command line returns for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One problem of a recipe or a model.

    `where` is a dotted path in the recipe (`stages.1.prune.pruning_ratio`), a file, or a parameter name. `message` says
    what is wrong, what was received and what is allowed; `hint` how to correct it.
    """

    where: str
    message: str
    hint: str = ""


class VitslimError(Exception):
    """Base of all errors that a user can correct: one sentence, and a hint where there is one."""

    exit_code = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.is_reported: bool | None = None
        """Whether another rank of the run reports an error already; None for an error before the ranks have joined."""


class GateError(VitslimError):
    """A finished run violates a gate of its recipe, or `inspect --verify` found violations."""

    exit_code = 1


class UsageError(VitslimError):
    """Invalid arguments of a command or of a public function."""

    exit_code = 2


class RecipeError(VitslimError):
    """A recipe that cannot run, with all its problems."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem], recipe: str = "recipe") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        super().__init__(f"{recipe} has {count} {'problem' if count == 1 else 'problems'}")


class StageError(VitslimError):
    """A stage failed, or violated its contract."""

    exit_code = 3


class RankLostError(VitslimError):
    """Another rank of the run is gone, or this one was asked to end. The run can be resumed."""

    exit_code = 130


class BackendUnavailableError(VitslimError):
    """A backend is not installed, or its device is missing."""

    exit_code = 4


class InputError(VitslimError):
    """A file or folder is missing, corrupt, or of the wrong kind."""

    exit_code = 5


def closest(word: str, allowed: Iterable[str]) -> str:
    """Return a hint with the closest allowed word, or with all of them when none is close."""
    choices = sorted(allowed)
    match = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else f"allowed: {', '.join(choices)}"
