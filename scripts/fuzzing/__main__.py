"""Fuzz the readers of untrusted files; `scripts/fuzz --list` names them."""

from __future__ import annotations

import argparse
import faulthandler
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

from targets import TARGETS, Target, check_batch

SECONDS = 600.0
MEMORY_BYTES = 12 * 2**30
"""Address space above which an allocation fails, so that a file that needs too much memory is found."""
HANG_S = 120.0
"""Time to read one input, after which the process ends with its traceback."""


def main() -> int:
    """Run each target until its time is over; return 1 if one found an input that no error refuses."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz the readers of untrusted files.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="targets to run; default: all")
    parser.add_argument("--list", action="store_true", help="list the targets")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for each target; default: 600")
    parser.add_argument("--seed", type=int, default=0, help="first seed of the random changes")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(TARGETS))
        return 0
    if unknown := [name for name in arguments.targets if name not in TARGETS]:
        parser.error(f"got {', '.join(unknown)}, expected {', '.join(TARGETS)}")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    failed = [name for name in arguments.targets or TARGETS if not _fuzz(name, arguments.seconds, arguments.seed)]
    return 1 if failed else 0


class Timed:
    """A target that ends the process if it reads one input for too long."""

    def __init__(self, target: Target) -> None:
        self.target, self.read = target, 0
        self.make, self.keep = target.make, target.keep

    def take(self) -> None:
        """Read the input."""
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        try:
            self.target.take()
        finally:
            faulthandler.cancel_dump_traceback_later()


def _fuzz(name: str, seconds: float, seed: int) -> bool:
    """Run one target; return whether every input was read, or refused with a message and a hint."""
    tried = 0
    with tempfile.TemporaryDirectory() as folder:
        target = Timed(TARGETS[name](Path(folder)))
        start = time.monotonic()
        end = start + seconds
        while time.monotonic() < end:
            try:
                tried += check_batch(target, seed)
            except Exception:  # noqa: BLE001  any exception is a finding
                print(f"{name}: failed after {tried} inputs, with --seed {seed}; the input is {target.keep()}")
                traceback.print_exc(limit=-6)
                return False
            seed += 1
    print(f"{name}: {tried} inputs in {time.monotonic() - start:.0f} s, {target.read} read, the others refused")
    return True


if __name__ == "__main__":
    sys.exit(main())
