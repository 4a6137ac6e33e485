"""Markdown tables of learned bits, and of W4A4 and FP8 without training, from files of scripts/results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from result_tables import load, points, table

RESULT, TRAINED = "nipq.json", "nipq-trained.json"
POST_TRAINING = "post-training"
SETS = ("val", "samples")
TASKS = ("caltech", "caltech, deployed", "imagenette")
BITS_HEAD = ("weight bits", "activation bits")
SAMPLES, SAMPLES_HEAD = "agreement_samples", "agreement, 500 classes"
SCORES_HEAD = ("top-1, val", "change, points (95 % CI)", "agreement, val")


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


def steps() -> str:
    """Return the time and the memory of a training step with noise, beside one of LSQ."""
    head = ("quantizers", "ms of a step", "time over LSQ", "MB of activations kept", "over LSQ")
    return table(head, (
        (name, f"{row['step_ms']:,.0f}", f"{row['time_over_lsq']:.2f}x", f"{row['kept_mb']:,.0f}",
         f"{row['memory_over_lsq']:.2f}x")
        for name, row in load(RESULT)["step"].items()
    ))  # fmt: skip


def trained() -> str:
    """Return accuracy after equal steps of LSQ and NIPQ on each task, each with its contrasts."""
    result = load(TRAINED)
    found = result["rows"]
    parts = [_arms(name, found[name]) for name in TASKS if name in found]
    contrasts = [_contrasts(name, found[name]) for name in TASKS if name in found]
    texts = (text for pair in zip(parts, contrasts, strict=True) for text in pair)
    diverged = f"Runs that diverged: {result['diverged']}."
    return "\n\n".join((*texts, *_digits(found), diverged))


def _arms(task: str, rows: dict[str, dict[str, Any]]) -> str:
    classes = any(SAMPLES in row for row in rows.values())
    head = (task, *BITS_HEAD, "MB of weights", "GBOPs", *SCORES_HEAD, *([SAMPLES_HEAD] if classes else []), "seconds")
    return table(head, ((name, *_arm(row, classes)) for name, row in rows.items()))


def _arm(row: dict[str, Any], classes: bool) -> Iterator[str]:
    yield from _bits(row)
    yield f"{row['weight_mb']:.2f}" if "weight_mb" in row else ""
    yield f"{row['gbops']:.1f}" if "gbops" in row else ""
    if row.get("diverged"):
        yield from ("diverged", "", "")
    else:
        yield from (f"{row['top1_val']:.1%}", points(row, "top1_change_val"), f"{row['agreement_val']:.1%}")
    if classes:
        yield f"{row[SAMPLES]:.1%}" if SAMPLES in row else ""
    yield f"{row['seconds']:.0f}" if "seconds" in row else ""


def _bits(row: dict[str, Any]) -> Iterator[str]:
    for kind in ("weight", "activation"):
        key = f"average_{kind}_bits"
        yield f"{row[key]:.2f}" if key in row else ""


def _contrasts(task: str, rows: dict[str, dict[str, Any]]) -> str:
    head = (f"{task}, compared", "top-1, points (95 % CI)", "agreement, points (95 % CI)")
    found = {
        f"{key.removeprefix(top1)}, {label}": (points(row, key), points(row, key.replace("top1", "agreement", 1)))
        for top1, label in (("top1_val: ", "val"), ("top1_samples: ", "500 classes"))
        for row in rows.values() for key in row if key.startswith(top1)
    }  # fmt: skip
    return table(head, ((name, *values) for name, values in found.items()))


def _digits(found: dict[str, Any]) -> Iterator[str]:
    """Yield the arms on digits: mean and range over the seeds."""
    seeds = [rows for name, rows in found.items() if name.startswith("digits, seed ")]
    if not seeds:
        return
    count = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds, mean (range)"
    head = (f"digits, {count}", *BITS_HEAD, "top-1, val", "agreement, val", "diverged")

    def rows() -> Iterator[Sequence[str]]:
        for name in seeds[0]:
            arms = [one[name] for one in seeds if name in one]
            fine = [arm for arm in arms if not arm.get("diverged")]
            spreads = (_spread([arm[key] for arm in fine]) for key in ("top1_val", "agreement_val"))
            yield (name, *_bits(arms[0]), *spreads, str(len(arms) - len(fine)))

    yield table(head, rows())


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ({min(values):.2%} to {max(values):.2%})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.2%}{spread}"
