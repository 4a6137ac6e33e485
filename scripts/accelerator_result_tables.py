"""Markdown tables of simulated accelerators that change results, from files of scripts/results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from result_tables import load, points, table

SPATTEN, FACT = "spatten-deit-tiny.json", "fact-deit-tiny.json"


def spatten() -> str:
    """Return all tables of SpAtten."""
    settings = _settings(SPATTEN, "attention cycles", 2), _within_one_point(SPATTEN)
    return "\n\n".join((*settings, _dense_elsewhere(), _evaluation_time(SPATTEN), _spatten_models(), _sequences()))


def fact() -> str:
    """Return all tables of FACT."""
    settings = _settings(FACT, "cycles", 3), _within_one_point(FACT)
    return "\n\n".join((*settings, _ablation(), _sensitivity(), _evaluation_time(FACT), _fact_models()))


def _settings(file: str, cycles: str, digits: int) -> str:
    """Return accuracy against simulated cycles and energy of each setting. cycles: name of the column."""
    head = ("setting", *_ACCURACY, cycles, "10 to 90 % of the images", "whole model, ms", "energy, mJ")

    def rows() -> Iterator[Sequence[str]]:
        for name, row in load(file)["rows"].items():
            spread = row["images"][cycles]
            yield (name, f"{row['top1_val']:.1%}", points(row, "top1_change_val"), points(row, "top1_change_samples"),
                   f"{row['agreement_samples']:.1%}", f"{spread['mean']:,.0f}",
                   f"{spread['p10']:,.0f} to {spread['p90']:,.0f}", f"{row['latency_ms']:.{digits}f}",
                   f"{row['energy_mj']:.{digits}f}")  # fmt: skip

    return table(head, rows())


_ACCURACY = ("top-1, val", "change, points (95 % CI)", "change, 500 classes", "agreement, 500 classes")


def _dense_elsewhere() -> str:
    """Return the dense model on targets that compute all of it exactly."""
    rows = load(SPATTEN)["dense"]
    return table(("whole model, dense", "latency, ms", "energy, mJ"), (
        (f"sim:{name}", f"{row['latency_ms']:.3f}", f"{row['energy_mj']:.2f}") for name, row in rows.items()
    ))  # fmt: skip


def _within_one_point(file: str) -> str:
    """Return the settings that lose little accuracy."""
    return f"At most one point of top-1 lost on both sets: {', '.join(load(file)['within_one_point']) or 'none'}."


def _evaluation_time(file: str) -> str:
    """Return the time of an evaluation under the approximations over that of FP32."""
    return table(("setting", "time of evaluation over FP32, median", "smallest", "largest"), (
        (name, f"{row['median']:.1f}x", f"{row['min']:.1f}x", f"{row['max']:.1f}x")
        for name, row in load(file)["time_ratio"].items()
    ))  # fmt: skip


def _spatten_models() -> str:
    """Return the share of attention in the latency of larger models, dense and with token pruning."""
    head = ("model, setting", "attention in the latency", "latency, ms", "energy, mJ")
    return table(head, (
        (name, f"{row['attention_share']:.0%}", f"{row['latency_ms']:.2f}", f"{row['energy_mj']:.1f}")
        for name, row in load(SPATTEN)["models"].items()
    ))  # fmt: skip


def _fact_models() -> str:
    """Return the shares of MLP and attention in the MACs of larger models, and the gain over INT8."""
    head = ("model", "MLP in the MACs", "attention in the MACs", "latency, ms", "speedup over INT8")
    return table(head, (
        (name, f"{row['mlp_share']:.0%}", f"{row['attention_share']:.0%}", f"{row['latency_ms']:.2f}",
         f"{row['speedup_over_int8']:.2f}x")
        for name, row in load(FACT)["models"].items()
    ))  # fmt: skip


def _ablation() -> str:
    """Return FACT's default without one block each."""
    rows = load(FACT)["ablation"]
    base = rows["all blocks"]
    return table(("FACT, default settings", "cycles", "latency", "energy"), (
        (name, f"{row['cycles']:,.0f}", f"{row['latency_ms'] / base['latency_ms']:.2f}x",
         f"{row['energy_mj'] / base['energy_mj']:.2f}x")
        for name, row in rows.items()
    ))  # fmt: skip


def _sensitivity() -> str:
    """Return latency and energy over the plausible range of each assumed value of FACT."""
    head = ("assumed value", "range", "latency, ms", "energy, mJ")

    def rows() -> Iterator[Sequence[str]]:
        for name, row in load(FACT)["sensitivity"].items():
            if "low" in row:
                yield (name, f"{row['low']:g} to {row['high']:g}",
                       f"{row['latency_low_ms']:.3f} to {row['latency_high_ms']:.3f}",
                       f"{row['energy_low_mj']:.3f} to {row['energy_high_mj']:.3f}")  # fmt: skip
            else:
                yield name, "", f"{row['latency_ms']:.3f}", f"{row['energy_mj']:.3f}"

    return table(head, rows())


def _sequences() -> str:
    """Return the GPT-2-small tables that were released with SpAtten in both models."""
    rows = load(SPATTEN)["sequences"]
    keys = ("K and V rows", "DRAM", "queries that read low bits", "cycles", "throughput", "terms of attention")
    return table(("table, model", *keys), (
        (name, *(f"{row[key]:,}" if isinstance(row[key], int) else str(row[key]) for key in keys))
        for name, row in rows.items()
    ))  # fmt: skip
