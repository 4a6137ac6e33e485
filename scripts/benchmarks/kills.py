"""Kill `vitslim run quickstart` at a random moment and run it again: equal weights, and little time lost.

Moments are uniform over the processor time of an uninterrupted run, from the start of the process to the written
artifact. Times are processor seconds, which other programs on the machine hardly change. The rows of finished rounds
stay in a file, and a later call continues.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from paths import RUNS

from vitslim import load_artifact
from vitslim.errors import VitslimError
from vitslim.files import LOCK_FILE, PARTIAL

ROUNDS = 50
FOLDER = Path(os.environ.get("VITSLIM_KILLS_FOLDER", RUNS / "kills"))
RATIO_MAX = 1.2
COMPARED = ("weights.safetensors", "model.onnx", "graph.json")
TICK_S = 0.02


def run(rounds: int = ROUNDS) -> dict[str, float]:
    """Return the counts of failures over all rounds, and the time with a kill over the time without."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows_file = FOLDER / "rows.jsonl"
    reference = _reference()
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()] if rows_file.exists() else []
    for seed in range(len(rows), rounds):
        rows.append(_round(reference, seed))
        with rows_file.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(f"round {seed + 1} of {rounds}: {rows[-1]}", file=sys.stderr)
    ratios = sorted(row["ratio"] for row in rows)
    return {
        "rounds": float(len(rows)),
        "uninterrupted_cpu_s": reference["cpu_s"],
        "start_up_cpu_s": reference["start_up_cpu_s"],
        **{key: float(sum(row[key] for row in rows)) for key in ("differing", "left_over", "corrupt", "too_slow")},
        "ratio_median": ratios[len(ratios) // 2],
        "ratio_max": ratios[-1],
    }


def _reference() -> dict[str, float]:
    """Return the times of an uninterrupted run and of its start, which are measured once."""
    kept = FOLDER / "reference.json"
    if not kept.exists():
        start_up, _ = _run(["plan", "quickstart"], None)
        cpu_s, _ = _run(["run", "quickstart", "--out", str(FOLDER / "reference"), "--fresh"], None)
        kept.write_text(json.dumps({"cpu_s": cpu_s, "start_up_cpu_s": start_up}))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def _round(reference: dict[str, float], seed: int) -> dict[str, Any]:
    """Kill a run at a random moment, run it again, and return what differs from the uninterrupted run."""
    out = FOLDER / "out"
    for path in FOLDER.glob("*out*"):
        shutil.rmtree(path)
    moment = random.Random(seed).random()
    command = ["run", "quickstart", "--out", str(out)]
    first_s, is_killed = _run(command, moment * reference["cpu_s"])
    stages = len(list(out.with_name("out.stages").glob("[0-9]*/record.json")))
    corrupt = _is_corrupt(out)  # finished folders only: a run that was killed has none, or a whole one
    second_s, _ = _run(command, None)
    total = first_s + second_s
    return {
        "moment": moment,
        "killed": is_killed,
        "finished_stages": stages,
        "cpu_s": total,
        "ratio": total / reference["cpu_s"],
        "too_slow": total > RATIO_MAX * reference["cpu_s"] + reference["start_up_cpu_s"],
        "differing": sum(not _equal(out / name, FOLDER / "reference" / name) for name in COMPARED),
        "left_over": len(_left_over()),
        "corrupt": corrupt or not out.is_dir() or _is_corrupt(out),
    }


def _run(arguments: list[str], kill_after_s: float | None) -> tuple[float, bool]:
    """Run a command; return its processor seconds and whether it was killed after `kill_after_s` of them."""
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            [sys.executable, "-m", "vitslim.cli.app", *arguments],
            stdout=subprocess.DEVNULL, stderr=messages, start_new_session=True,
        )  # fmt: skip
        while kill_after_s is not None and _is_running(process.pid) and _cpu_s(process.pid) < kill_after_s:
            time.sleep(TICK_S)
        if kill_after_s is not None:
            os.killpg(process.pid, signal.SIGKILL)  # a process that has ended is there until it is waited for
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        is_killed = code == -signal.SIGKILL
        if code not in {0, 1} and not is_killed:  # 1: a gate of latency failed, on a busy machine
            messages.seek(0)
            error = messages.read().decode("utf-8", "replace")
            sys.exit(f"error: `vitslim {' '.join(arguments)}` ended with exit code {code}\n{error}")
    return used.ru_utime + used.ru_stime, is_killed


def _is_running(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def _cpu_s(process: int) -> float:
    """Return the processor seconds that a running process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _equal(one: Path, other: Path) -> bool:
    return one.is_file() and one.read_bytes() == other.read_bytes()


def _left_over() -> list[Path]:
    found = FOLDER.rglob("*")
    return [path for path in found if path.name.endswith((PARTIAL, ".old", ".kept")) or path.name == LOCK_FILE]


def _is_corrupt(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        load_artifact(folder)
    except VitslimError:
        return True
    return False
