"""Renderers of a `Report`: terminal, JSON, HTML, Markdown and JUnit XML. They read nothing else."""

from vitslim.report.html import render_html
from vitslim.report.json import parse_report, render_json, report_schema
from vitslim.report.markdown import junit_xml, render_markdown
from vitslim.report.terminal import render_terminal

__all__ = [
    "junit_xml",
    "parse_report",
    "render_html",
    "render_json",
    "render_markdown",
    "render_terminal",
    "report_schema",
]
