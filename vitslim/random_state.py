"""Python's generator of random numbers, which timm's augmentation uses, for one thread at a time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_LOCK = Lock()


@contextmanager
def seeded_random(seed: int) -> Iterator[None]:
    """Seed Python's generator until the context ends; then its state is restored. Other threads wait."""
    with _LOCK:
        state = random.getstate()
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
