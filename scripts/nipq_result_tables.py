"""Markdown tables of W4A4 and FP8 without training, from scripts/results/nipq.json."""

from __future__ import annotations

from collections.abc import Iterator

from result_tables import load, table

RESULT = "nipq.json"
POST_TRAINING = "post-training"
SETS = ("val", "samples")


def post_training() -> str:
    """Return accuracy without training, measured and published in tables of their own."""
    found = load(RESULT)
    head = ("quantization", "top-1, val", "agreement", "SQNR, dB", "top-1, 500 classes", "agreement", "SQNR, dB")
    measured = table(head, ((name, *_fidelity(row)) for name, row in found[POST_TRAINING].items()))
    published = table(("published", "top-1"), ((name, f"{value:.1%}") for name, value in found["published"].items()))
    return f"{measured}\n\n{published}"


def _fidelity(row: dict[str, float]) -> Iterator[str]:
    for one in SETS:
        yield f"{row[f'top1_{one}']:.1%}"
        yield f"{row[f'agreement_{one}']:.1%}" if f"agreement_{one}" in row else ""
        yield f"{row[f'sqnr_db_{one}']:.1f}" if f"sqnr_db_{one}" in row else ""
