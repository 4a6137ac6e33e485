"""The error tree of vitslim. Each class knows the exit code that the command line returns for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in words for the person who can put it right.

    `where` is a dotted path in the recipe (`stages.1.prune.ratio`), a file, or a parameter name.
    """

    where: str
    message: str
    hint: str = ""


class VitslimError(Exception):
    """Something a person can put right: one sentence and, where there is one, a hint."""

    exit_code = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class GateError(VitslimError):
    """The run finished, but a gate of the recipe does not hold."""

    exit_code = 1


class UsageError(VitslimError):
    """Wrong arguments on the command line or of a public function."""

    exit_code = 2


class RecipeError(VitslimError):
    """A recipe that cannot run. Carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem], recipe: str = "recipe") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        super().__init__(f"{recipe} has {count} {'problem' if count == 1 else 'problems'}")


class StageError(VitslimError):
    """A stage could not do its work or broke its contract."""

    exit_code = 3


class BackendUnavailableError(VitslimError):
    """A backend is not installed or its device is missing."""

    exit_code = 4


class InputError(VitslimError):
    """A file or folder is missing, corrupt, or not what it should be."""

    exit_code = 5


def closest(word: str, allowed: Iterable[str]) -> str:
    """A hint that names the closest allowed word, or all of them when none is close."""
    choices = sorted(allowed)
    match = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else f"allowed: {', '.join(choices)}"
