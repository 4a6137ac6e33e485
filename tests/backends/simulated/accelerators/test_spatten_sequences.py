"""Sequence workloads: the tables of the SpAtten release, and CSV files that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitslim.backends.simulated.spatten.estimate import attention_time, effective_tflops
from vitslim.backends.simulated.spatten.head_work import HeadWork
from vitslim.backends.simulated.spatten.sequences import COLUMNS, estimate_sequences, read_sequences
from vitslim.backends.simulated.spatten.spec import load_spec
from vitslim.errors import InputError

PRUNED = "spatten/summary-gpt2-small-wikitext2-per8.csv"
DENSE = "spatten/summary-gpt2-small-wikitext2-per8-step1+dedic.csv"
ROW = "0,0,0,64.0,100,50,10,6,16,6,True,4,False,-1"


def write_table(path: Path, *rows: str, columns: tuple[str, ...] = COLUMNS) -> Path:
    path.write_text("\n".join([",".join(columns), *rows]) + "\n")
    return path


def test_sums_of_the_gpt2_tables(shared_data: Path) -> None:
    dense, pruned = read_sequences(shared_data / DENSE), read_sequences(shared_data / PRUNED)
    assert dense.lengths.shape == pruned.lengths.shape == (32, 12, 12)
    for found, keys, values in ((dense, 4_647_168, 4_647_168), (pruned, 1_283_172, 255_180)):
        assert found.lengths.sum() == 4_647_168
        assert (found.work.keys.sum(), found.work.values.sum()) == (keys, values)
    assert (dense.refetched, pruned.refetched) == (0, 323)
    assert round(pruned.row_reduction, 2) == 6.04
    assert round(pruned.dram_reduction(low_bits=False), 1) == 32.2
    assert round(pruned.dram_reduction(low_bits=True), 1) == 28.9
    assert round(100 * pruned.refetched / 4608, 1) == 7.0


def test_throughput_and_power_of_gpt2_are_near_the_paper(shared_data: Path) -> None:
    spec = load_spec("spatten", {"model": "refined"})
    found = read_sequences(shared_data / PRUNED)
    assert effective_tflops(found.work, attention_time(found.work, spec), spec) == pytest.approx(0.43, rel=0.25)
    energy = estimate_sequences(shared_data / PRUNED, spec, "sim:spatten").energy
    assert energy is not None
    for part, published in (("compute", 16), ("sram", 15), ("dram", 69)):
        assert 100 * energy.parts_mj[part] / energy.total_mj == pytest.approx(published, abs=10)


def bert(tokens: int) -> HeadWork:
    count, zero = np.full((1, 1, 12), tokens), np.zeros((1, 1, 12), np.int64)
    bits = np.array(8)
    return HeadWork(count, count, count, count, zero, zero - 1, np.array(64), bits, bits, bits, np.array(0))


def test_throughput_of_bert_is_near_the_paper_and_drains_explain_the_difference() -> None:
    refined, released = load_spec("spatten", {"model": "refined"}), load_spec("spatten")
    lengths = (24, 40, 64, 128)
    found = {spec.model: [effective_tflops(bert(n), attention_time(bert(n), spec), spec) for n in lengths]
             for spec in (refined, released)}  # fmt: skip
    assert np.mean(found["refined"]) == pytest.approx(1.61, rel=0.2)
    assert np.round(found["released"], 2) == pytest.approx([1.70, 1.87, 1.95, 2.01])
    for n in lengths:
        slow, fast = attention_time(bert(n), refined), attention_time(bert(n), released)
        difference = slow.cycles - fast.cycles
        assert (slow.drain - fast.drain).item() >= difference.item() > 0


def test_progressive_quantization_reads_a_fifth_of_the_bits() -> None:
    assert round(32 / (6 + 0.059 * 4), 2) == 5.13
    keys, rows = np.full((1000, 1, 1), 64), np.ones((1000, 1, 1), np.int64)
    low = np.arange(1000).reshape(-1, 1, 1) < 59
    zero = np.array(0)
    work = HeadWork(
        rows, keys, keys, keys, low * 1, rows * -1, np.array(64), np.array(6), np.array(6), zero, np.array(4)
    )
    assert (work.keys * 32).sum() / (work.keys * 6 + work.refetched * work.keys * 4).sum() == pytest.approx(
        5.13, abs=5e-3
    )


def test_a_line_that_begins_with_no_number_is_skipped(tmp_path: Path) -> None:
    found = read_sequences(write_table(tmp_path / "a.csv", ROW, "config.yaml"))
    assert found.lengths.tolist() == [[[100]]]
    assert found.work.refetched.item() == 1
    assert estimate_sequences(tmp_path / "a.csv", load_spec("spatten-1/8"), "x").cycles


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0,0,0,64.0,100,many,10,6,16,6,True,4,False,-1"], "line 2"),
        (["0,0,0,64.0,100,50,10,6,16,6,Perhaps,4,False,-1"], "if_requant is 'Perhaps'"),
        (["0,1,0,64.0,100,50,10,6,16,6,True,4,False,-1"], "has 1 lines, but 1 x 2 x 1"),
        ([ROW, ROW], "has 2 lines, but 1 x 1 x 1"),
        (["config.yaml"], "contains no queries"),
    ],
)
def test_wrong_tables_are_refused(rows: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_sequences(write_table(tmp_path / "a.csv", *rows))
    with pytest.raises(InputError, match="has no column topk"):
        read_sequences(write_table(tmp_path / "b.csv", "0", columns=COLUMNS[:-1]))
