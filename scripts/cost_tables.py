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
