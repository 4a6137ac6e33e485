"""Markdown tables of time and memory of vitslim itself, from figures that `scripts/bench NAME --json FILE` writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from result_tables import load, table

STEPS = {"labels": "training with labels", "distillation": "distillation", "two-four": "training with 2:4 masks",
         "qat": "quantization-aware training"}  # fmt: skip
KINDS = {"webdataset": "WebDataset shards", "imagefolder": "image folder"}


def training_steps() -> str:
    """Return time and memory of a training step over those of a loop written by hand."""
    figures = load("training.json")["figures"]
    return table(("step", "time over the loop by hand", "limit", "activations kept over the loop by hand"), (
        (text, f"{figures[f'{name}_time']:.2f}x", f"{figures[f'{name}_time_limit']:.2f}x",
         f"{figures[f'{name}_kept_memory']:.2f}x")
        for name, text in STEPS.items()
    ))  # fmt: skip


LARGE = {"vit_base_ptq": ("ViT-B", "INT8"), "vit_large_ptq": ("ViT-L", "INT8"),
         "vit_large_two_four": ("ViT-L", "2:4 by SparseGPT")}  # fmt: skip


def large_models() -> str:
    """Return minutes and peak memory of stages on large models."""
    figures = load("memory.json")["figures"]
    head = ("model", "stage", "calibration images", "minutes", "peak memory in GiB", "of which weights in float")
    return table(head, (
        (model, stage, f"{figures[f'{name}_images']:.0f}", f"{figures[f'{name}_seconds'] / 60:.1f}",
         f"{figures[f'{name}_peak_gib']:.1f}", f"{figures[f'{name}_weights_gib']:.1f}")
        for name, (model, stage) in LARGE.items()
    ))  # fmt: skip


def intervals() -> str:
    """Return how often the interval of a measured speedup is right."""
    figures = load("noise.json")["figures"]
    count = figures["measurements"]
    return table(("second file", "intervals", "goal"), (
        ("the same file", f"{figures['same file: interval contains 1']:.0f} of {count:.0f} contain 1.00", "18"),
        ("slowed down by 5 %", f"{figures['slower by 5 %: interval below 1']:.0f} of {count:.0f} are below 1.00", ""),
    ))  # fmt: skip


def large_index() -> str:
    """Return seconds and memory until the first batch of a million images."""
    figures = load("large-index.json")["figures"]

    def rows() -> Iterator[Sequence[str]]:
        for kind, text in KINDS.items():
            for run in ("first", "later"):
                one = {key: figures[f"{kind}_{run}_{key}"] for key in ("images", "s", "cpu_s", "mb", "mb_after_steps")}
                yield (text, run, f"{one['images']:,.0f}", f"{one['s']:.1f}", f"{one['cpu_s']:.1f}",
                       f"{one['mb']:,.0f}", f"{one['mb_after_steps']:,.0f}")  # fmt: skip

    head = ("data", "run", "images", "seconds to the first batch", "CPU seconds", "MB", "MB after 400 batches")
    return table(head, rows())
