"""Events of a run as JSON lines, for programs that follow it. recipes/README.md lists the events."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from vitslim.errors import InputError, RecipeError, VitslimError
from vitslim.progress import STAGE_ENDED, STAGE_STARTED, Forwarding, Progress, item_count

T = TypeVar("T")
SECONDS_BETWEEN_EVENTS = 1.0
"""Shortest time between two events of one loop, except for its last."""


class EventFile(Forwarding):
    """Progress that also writes each event to a file: one JSON object in a line, at once."""

    def __init__(self, inner: Progress, path: Path) -> None:
        """Open the file, whose content is replaced. Raises InputError if it cannot be written."""
        super().__init__(inner)
        self.path, self.stage = path, ""
        try:
            self.file = path.open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise self._unwritable(error) from error

    def track(self, items: Iterable[T], label: str, total: int | None = None, images: int = 0) -> Iterator[T]:
        """Yield the items, and write `progress` events."""
        count = item_count(items, total)
        started, written, done = time.monotonic(), -math.inf, 0
        for item in self.inner.track(items, label, total, images):
            yield item
            done, now = done + 1, time.monotonic()
            if now - written >= SECONDS_BETWEEN_EVENTS or done == count:
                written, speed = now, done / max(now - started, 1e-9)
                values: dict[str, object] = {"label": label, "done": done, "total": count}
                values |= {"images_per_s": speed * images} if images else {}
                self._write("progress", values | ({"seconds_left": (count - done) / speed} if count else {}))

    def say(self, message: str) -> None:
        """Write a `message` event."""
        super().say(message)
        self._write("message", {"message": message})

    def warn(self, message: str) -> None:
        """Write a `warning` event."""
        super().warn(message)
        self._write("warning", {"message": message})

    def record(self, label: str, step: int, values: Mapping[str, float]) -> None:
        """Write a `metrics` event."""
        super().record(label, step, values)
        self._write("metrics", {"label": label, "step": step, "values": dict(values)})

    def emit(self, event: str, values: Mapping[str, object]) -> None:
        """Write the event."""
        super().emit(event, values)
        self.stage = str(values.get("stage", "")) if event == STAGE_STARTED else self.stage
        self._write(event, values)
        self.stage = "" if event == STAGE_ENDED else self.stage

    def close(self, exit_code: int, error: BaseException | None = None) -> None:
        """Write the last event, `ended`, with the exit code and the message of an error."""
        values: dict[str, object] = {"exit_code": exit_code}
        if isinstance(error, VitslimError):
            values |= {"message": error.message, "hint": error.hint}
        elif error is not None:
            values |= {"message": f"{type(error).__name__}: {error}".rstrip(": ")}
        if isinstance(error, RecipeError):
            values["problems"] = [vars(problem) for problem in error.problems]
        self._write("ended", values)
        self.file.close()

    def _write(self, event: str, values: Mapping[str, object]) -> None:
        stage = {"stage": self.stage} if self.stage else {}
        time_utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": time_utc, "event": event, **stage, **values}
        try:
            self.file.write(json.dumps(_finite(line), ensure_ascii=True, allow_nan=False) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"'{self.path}' cannot be written: {error.strerror}", "choose another file for --events")


def _finite(value: Any) -> Any:
    """Return a value with None in place of numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
