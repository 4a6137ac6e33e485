"""`vitslim run quickstart` on a disk that is full at one write after the other, until it has enough space.

The disk is a small file system in memory, which needs the right to mount. After each failure the command must have
ended with one sentence and its documented exit code, every finished stage and the result must be whole, and no
temporary file may be left. Then the disk grows a little, and the same command continues. Last, it is read-only.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from vitslim import load_artifact
from vitslim.errors import VitslimError
from vitslim.files import PARTIAL
from vitslim.graph.saved import load_graph
from vitslim.workload import load_onnx

FIRST_KB, STEP_KB = 200, 2600
"""Size of the disk at first, and its growth after each failure: about a third of the files of a stage."""
FAILED = 5
FAST = [
    "data.eval_images=64",
    "stages.2.distill.train.epochs=1",
    "report.batches=[1]",
    "report.seconds=0.1",
    "gates={}",
]


def run() -> dict[str, float]:
    """Return the numbers of failed runs, and of those that left something behind or said something else."""
    counts = {"failed_runs": 0.0, "wrong_code": 0.0, "unexplained": 0.0, "damaged": 0.0, "left_over": 0.0}
    with TemporaryDirectory() as folder, _disk(Path(folder) / "disk") as disk:
        out, size = disk / "out", FIRST_KB
        while True:
            code, error = _run(out)
            print(f"{size} KB: exit code {code}: {error.splitlines()[0] if error else 'done'}", file=sys.stderr)
            found = _damaged(out)
            counts["damaged"] += found
            counts["left_over"] += len(list(disk.rglob(f".*{PARTIAL}")))
            if code == 0:
                break
            counts["failed_runs"] += 1
            counts["wrong_code"] += code != FAILED
            counts["unexplained"] += "cannot be written" not in error and "cannot write" not in error
            size += STEP_KB
            _remount(disk, f"size={size}k")
        _remount(disk, "ro")
        code, error = _run(out)
        counts["read_only_code"] = float(code)
    return counts


def _run(out: Path) -> tuple[int, str]:
    """Return the exit code, and the error with its hint."""
    command = [sys.executable, "-m", "vitslim.cli.app", "run", "quickstart", "--out", str(out), "--set", *FAST]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    place = done.stderr.find("error: ")
    return done.returncode, done.stderr[place:] if place >= 0 and done.returncode else ""


def _damaged(out: Path) -> int:
    """Return the number of stages and results that look finished and cannot be read."""
    readers = [lambda: load_artifact(out)] if out.exists() else []
    for folder in out.with_name(f"{out.name}.stages").glob("[0-9]*"):
        readers += [lambda f=folder: load_graph(f), lambda f=folder: load_onnx(f / "model.onnx")]  # type: ignore[misc]
    return sum(not _succeeds(read) for read in readers)


def _succeeds(read: object) -> bool:
    try:
        read()  # type: ignore[operator]
    except VitslimError as error:
        print(f"damaged: {error}", file=sys.stderr)
        return False
    return True


@contextmanager
def _disk(path: Path) -> Iterator[Path]:
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={FIRST_KB}k", "none", str(path)], check=False)
    if done.returncode:
        sys.exit("skipped: a file system in memory cannot be mounted here\nhint: run it as root on Linux")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def _remount(path: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(path)], check=True)
