"""The tensor mathematics of each task: its losses, its agreement with another model, and its metrics.

A new task is one class here, one line of `task_for`, and its names in `vitslim/tasks.py`.
"""

from __future__ import annotations

from vitslim.graph.model_graph import ModelSource
from vitslim.training.tasks.classification import Classification
from vitslim.training.tasks.contract import Predicted, TaskFunctions
from vitslim.training.tasks.embeddings import Embeddings
from vitslim.training.tasks.map_comparison import MapComparison
from vitslim.training.tasks.multilabel import MultiLabel

__all__ = ["MapComparison", "Predicted", "TaskFunctions", "task_for"]


def task_for(source: ModelSource) -> TaskFunctions:
    """Return the functions of the task of a model."""
    match source.task:
        case "classify":
            return Classification()
        case "multilabel":
            return MultiLabel()
        case "features":
            return Embeddings(source.outputs)
