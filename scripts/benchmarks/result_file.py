"""Result files in scripts/results: JSON with the date and the environment of the measurement."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

from vitslim.backends.environment import environment


def write_result(path: Path, **parts: Any) -> None:
    """Write the date, the environment and the parts of a result, such as `rows` or `figures`."""
    result = {"date": date.today().isoformat(), "environment": environment().model_dump(), **parts}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
