"""Two processes fill one cache while one of them is killed at a random moment, round after round.

A round has entries of every kind: tables, an archive and a commit of a git repository, which go through the functions
that `vitslim run` uses, and files and folders as any cache writes them with `vitslim.files`. After the kill, a third
process fills what is missing. Each entry must then be whole and have been filled by one process, the killed one aside,
and no temporary file may be left. The rows of finished rounds stay in a file, and a later call continues.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from concurrency_worker import LOG, entries, is_whole, shared_recipes

ROUNDS = 100
ROWS = Path(os.environ.get("VITSLIM_CONCURRENCY_ROWS", "runs/concurrency.jsonl"))
ENTRIES = 10
LONGEST_S = 120.0
"""A process that takes longer hangs."""


def run(rounds: int = ROUNDS) -> dict[str, float]:
    """Return the counts of kills, and of lost, damaged, repeated and left-over entries, over all rounds."""
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    with TemporaryDirectory() as folder:
        sources = shared_recipes(Path(folder))
        for seed in range(len(done), rounds):
            done.append(one_round(Path(folder) / "cache", sources, seed))
            with ROWS.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(f"round {seed + 1} of {rounds}: {done[-1]}", file=sys.stderr)
    return {"rounds": float(len(done)), **{key: float(sum(row[key] for row in done)) for key in done[0]}}


def one_round(cache: Path, sources: Iterable[str], seed: int) -> dict[str, float]:
    """Fill an empty cache by two processes, one of which is killed; return what is wrong afterwards, counted."""
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    generator = random.Random(seed)
    start = time.monotonic()
    workers = [_start(cache, sources, worker_seed) for worker_seed in (2 * seed, 2 * seed + 1)]
    _await_first(cache, workers)
    time.sleep(generator.uniform(0, 0.5))
    victim = generator.choice(workers)
    is_killed = victim.poll() is None
    victim.send_signal(signal.SIGKILL)
    for worker in workers:
        worker.wait(LONGEST_S)
    failed = sum(worker.returncode != 0 for worker in workers if worker is not victim)
    third = _start(cache, sources, seed)
    failed += third.wait(LONGEST_S) != 0
    return {"killed": is_killed, "failed": failed, **_faults(cache, victim.pid), "seconds": time.monotonic() - start}


def _faults(cache: Path, killed: int) -> dict[str, float]:
    """Return the number of entries that are wrong. killed: id of the process whose work another one may repeat."""
    begun = [line.split() for line in (cache / LOG).read_text().splitlines()]
    others = [name for name, process in begun if int(process) != killed]
    found = entries(cache)
    return {
        "entries": len(found),
        "lost": sum(not path.exists() for path in found),
        "damaged": sum(path.exists() and not is_whole(path) for path in found),
        "repeated": len(others) - len(set(others)) + len(found) - ENTRIES,
        "left_over": sum(path.name.endswith((".partial", ".old", ".lock")) for path in cache.rglob("*")),
    }


def _start(cache: Path, sources: Iterable[str], seed: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(Path(__file__).with_name("concurrency_worker.py")), str(cache), str(seed), *sources]
    return subprocess.Popen(command, env=os.environ | {"XDG_CACHE_HOME": str(cache)})


def _await_first(cache: Path, workers: list[subprocess.Popen[bytes]]) -> None:
    """Wait until a process has finished its first entry."""
    while not (cache / LOG).exists() and any(worker.poll() is None for worker in workers):
        time.sleep(0.01)
