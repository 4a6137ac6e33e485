"""Write the measured tables of README.md, and all of scripts/results/README.md.

Use: bash scripts/vitslim run quickstart && .venv/bin/python scripts/update_readme.py
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import result_tables as tables
from headline_table import headline_table
from result_sections import SECTIONS, Section
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGE = tables.RESULTS / "README.md"
QUICKSTART = ROOT / "runs" / "quickstart"
WIDTH = 122
TABLES_OF_QUICKSTART = 1

HEAD = """\
# Results

Measured results of vitslim. `scripts/update_readme.py` writes this page from the JSON and CSV files beside it; do not
edit it. Each section names the command that measures the table again. Speedups are ratios of median latencies, and all
files of a table run interleaved in one process. Agreement is the fraction of images on which the compressed model and
the dense model predict the same class; SQNR is the signal-to-quantization-noise ratio of the logits. Images:
`imagenet_samples` has one image of each of 500 ImageNet classes; `imagenette` has ten classes. `VITSLIM_SHARED_DATA`
names the folder that holds them and the weights.
"""


def quickstart() -> str:
    """Return the headline and the first table that `vitslim run quickstart` prints."""
    from vitslim import load_artifact
    from vitslim.report import render_terminal

    text = io.StringIO()
    report = load_artifact(QUICKSTART).report
    render_terminal(report, Console(file=text, width=WIDTH, highlight=False))
    parts = text.getvalue().strip("\n").split("\n\n")[: 1 + TABLES_OF_QUICKSTART]
    return "\n".join(["```text", *(line.rstrip() for line in "\n\n".join(parts).splitlines()), "```"])


BLOCKS: dict[str, Callable[[], str]] = {"quickstart": quickstart, "results": headline_table}
"""Name of a block in README.md to the function that returns its text."""


def with_block(text: str, name: str, block: str) -> str:
    """Return a page in which the text between the two markers of a name is replaced."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = text.split(start)
    return f"{before}{start}\n\n{block}\n\n{end}{rest.split(end)[1]}"


def page() -> str:
    """Return scripts/results/README.md, with the sections whose results exist."""
    sections = [section for section in SECTIONS if any(tables.RESULTS.glob(section.source))]
    contents = "\n".join(f"- [{section.title}](#{_anchor(section.title)})" for section in sections)
    return "\n".join([HEAD, contents, *(part for section in sections for part in _section(section)), ""])


def _section(section: Section) -> Iterator[str]:
    command = f"`bash scripts/bench {section.benchmark}`"
    measured = tables.measured_on(section.source)
    yield f"\n## {section.title}\n\n{section.text}\n\n{command}. {measured}\n\n{section.table()}"


def _anchor(title: str) -> str:
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


def main() -> None:
    """Write both pages; without runs/quickstart, the quickstart block of README.md keeps its text."""
    text = README.read_text(encoding="utf-8")
    for name, block in BLOCKS.items():
        if name == "quickstart" and not QUICKSTART.exists():
            print(f"README.md: {name} is unchanged, {QUICKSTART.relative_to(ROOT)} does not exist")
            continue
        text = with_block(text, name, block())
        print(f"README.md: {name}")
    README.write_text(text, encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(SECTIONS)} tables")


if __name__ == "__main__":
    main()
