"""Puts the output of `vitslim run quickstart` into README.md, from the report of the last run.

Use: bash scripts/vitslim run quickstart && .venv/bin/python scripts/update_readme.py
"""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from vitslim import load_artifact
from vitslim.report import render_terminal

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- quickstart -->", "<!-- /quickstart -->"


def main() -> None:
    artifact = load_artifact(ROOT / "runs" / "quickstart")
    text = io.StringIO()
    render_terminal(artifact.report, Console(file=text, width=118, highlight=False))
    lines = "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines())
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{START}\n\n```\n{lines}\n```\n\n{END}{after}", encoding="utf-8")
    print(f"README.md: quickstart of {artifact.report.created}")


if __name__ == "__main__":
    main()
