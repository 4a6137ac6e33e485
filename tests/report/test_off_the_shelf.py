"""Smaller timm models beside a result, with their published values."""

from __future__ import annotations

from vitslim.report import render_html
from vitslim.report.tables.off_the_shelf import (
    PublishedModel,
    find_published,
    nearest_smaller,
    neighbor_lines,
    published_models,
)
from vitslim.results import Report


def test_every_published_model_is_listed_once_with_plausible_values() -> None:
    models = published_models()
    assert len({one.name for one in models}) == len(models) >= 40
    assert all(1 < one.latency_ms < 100 and 50 < one.top1 < 95 and "." in one.name for one in models)


def test_models_are_found_by_full_name_and_by_architecture() -> None:
    short, full = find_published("deit_tiny_patch16_224"), find_published("deit_tiny_patch16_224.fb_in1k")
    assert short is full is not None
    assert (full.latency_ms, full.top1) == (5.484, 72.172)
    assert find_published("my_own_model") is None


def test_neighbors_are_faster_near_the_speedup_and_not_dominated() -> None:
    values = {"a.x": (1, 60), "b.x": (4, 70), "c.x": (5, 69), "d.x": (6, 75), "e.x": (9, 78), "dense.x": (10, 80)}
    models = [PublishedModel(name, *found) for name, found in values.items()]
    found = nearest_smaller(models[-1], 1.6, models)
    assert [one.architecture for one in found] == ["b", "d", "e"]
    assert nearest_smaller(models[0], 2.0, models) == ()


def test_the_report_names_them_apart_from_measured_values(full_report: Report) -> None:
    report = full_report.model_copy(update={"model": "deit_small_patch16_224"})
    lines = neighbor_lines(report)
    assert len(lines) == 3
    assert any(line.startswith("levit_128s.fb_dist_in1k: 3.3x faster than deit_small_patch16_224.fb_in1k, -3.3 points")
               for line in lines)  # fmt: skip
    assert "levit_128s.fb_dist_in1k" in render_html(report)
    assert neighbor_lines(report.model_copy(update={"task": "features"})) == ()
    assert neighbor_lines(report.model_copy(update={"model": "unknown"})) == ()
    assert neighbor_lines(report.model_copy(update={"model_kwargs": {"num_classes": 10}})) == lines
    assert neighbor_lines(report.model_copy(update={"model_kwargs": {"img_size": 32}})) == ()
