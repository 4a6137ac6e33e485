"""The quickstart recipe, from start to artifact."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from command import vitslim

from vitslim.report import parse_report
from vitslim.results import Report


def run() -> dict[str, float]:
    """Return the wall-clock seconds of the run and the figures of its report."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "quickstart"
        seconds = vitslim("run", "quickstart", "--out", str(out))
        report = parse_report((out / "report.json").read_text(encoding="utf-8"))
    return {"seconds": seconds, **_figures(report)}


def _figures(report: Report) -> dict[str, float]:
    dense, final = report.stages[0], report.stages[-1]
    figures = {
        "macs_ratio": dense.cost.macs / final.cost.macs,
        "params_ratio": dense.cost.params / final.cost.params,
        "onnx_size_ratio": dense.onnx_bytes / final.onnx_bytes,
        "onnx_bytes": float(final.onnx_bytes),
    }
    figures |= {f"dense_top1_{a.dataset}": a.metrics["top1"] for a in dense.accuracies}
    figures |= {f"final_top1_{a.dataset}": a.metrics["top1"] for a in report.final_accuracies or final.accuracies}
    for m in final.measurements:
        if m.speedup is not None:
            figures[f"speedup {m.backend} batch {m.batch} threads {m.threads}"] = m.speedup
    for e in final.estimates:
        if e.speedup is not None:
            figures[f"speedup {e.backend} batch {e.batch}"] = e.speedup
    return figures
