"""Estimate the duration of each stage: MACs of its passes over images, decoding, and writing of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vitslim.recipe.backend_names import SIM, backend_name
from vitslim.recipe.formats.profiles import PORTABLE
from vitslim.recipe.schema import Recipe
from vitslim.recipe.work import ImageCounts, Work
from vitslim.units import format_duration

if TYPE_CHECKING:
    from vitslim.pipeline.duration.probe import Rates

FORWARD, TRAINING, RUNTIME = 0.36, 0.33, 0.55
"""Fraction of the rate of a single matmul that DeiT-Tiny reaches in PyTorch, in its training, and in ONNX Runtime."""
TRAINING_PASSES = 3
"""MACs of a pass forward and backward, in MACs of a pass forward."""
FILE_SECONDS, FILE_OVER_TRACE = 1.0, 1.8
"""Seconds to write and check one ONNX file: some that are equal for all models, and a multiple of those in which the
model was traced. Both are code of Python, once for each operator of the model."""
CHECK = Work(forward=64, runtime=128)
"""The comparison of the exported file with its graph."""


def stage_seconds(
    recipe: Recipe, macs: Sequence[int], counts: ImageCounts, rates: Rates, trace_seconds: float
) -> list[float]:
    """Return the seconds of the dense model and of each stage of a recipe, with the evaluation of its file.

    macs: of one image, of the dense model and after each stage. trace_seconds: those in which the dense model was
    traced. Embedded digits need no decoding.
    """
    file = FILE_SECONDS + FILE_OVER_TRACE * trace_seconds
    has_files = recipe.data.kind != "digits"
    images = counts.evaluated + counts.calibration if has_files else 0
    evaluation = Work(runtime=counts.evaluated)
    found = [_seconds(evaluation + Work(decoded=images, files=1), macs[0], rates, file)]
    for position, config in enumerate(recipe.stages):
        work = config.work(counts)
        if not has_files:
            work = replace(work, decoded=0.0)
        own = Work(files=1, runtime=counts.evaluated)
        if config.export_profile is not None:
            # A file that the stage before wrote in this form is neither written nor evaluated again.
            own = CHECK if _has_exported_form(recipe, position) else own + CHECK
        # Training after pruning runs on the smaller model, the evaluation too; the scores of pruning on the larger one.
        found.append(_seconds(work, macs[position], rates, file) + _seconds(own, macs[position + 1], rates, file))
    return found


def measuring_seconds(recipe: Recipe) -> float:
    """Return the seconds in which the measured backends time the files of a run, equal files once."""
    report, last = recipe.report, len(recipe.stages) - 1
    files = 1 + len(recipe.stages) - _has_exported_form(recipe, last)
    measured = [name for name in map(backend_name, report.backends) if not name.startswith(SIM)]
    return len(measured) * files * len(report.batches) * len(report.threads) * report.seconds


def describe_durations(stages: Mapping[str, float], total: float) -> str:
    """Return the estimated durations of a run and of its stages by name as a sentence."""
    parts = ", ".join(f"{name} ~{format_duration(seconds)}" for name, seconds in stages.items())
    return f"this takes ~{format_duration(total)} on this machine: {parts}"


def _has_exported_form(recipe: Recipe, position: int) -> bool:
    """Return whether the file before the export stage has its form: that of a quantized model, or a portable one."""
    before = recipe.stages[:position]
    is_quantized = any(config.kind == "quantize" for config in before)
    return is_quantized or (bool(before) and recipe.stages[position].export_profile is PORTABLE)


def _seconds(work: Work, macs: int, rates: Rates, file: float) -> float:
    passes = work.forward / FORWARD + TRAINING_PASSES * work.training / TRAINING + work.runtime / RUNTIME
    return passes * macs / rates.macs_per_s + work.decoded / rates.images_per_s + file * work.files
