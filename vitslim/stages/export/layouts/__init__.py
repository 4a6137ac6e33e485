"""Layouts of the folder of a run, by the names in `recipe/formats/layouts.py`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vitslim.files import LayoutFiles
from vitslim.stages.export.layouts.hugging_face import hugging_face_files, hugging_face_obstacles
from vitslim.stages.export.layouts.layout import ExportedModel, Layout
from vitslim.stages.export.layouts.triton import triton_files

__all__ = ["LAYOUTS", "ExportedModel", "Layout"]

LAYOUTS: Mapping[str, Layout] = MappingProxyType({
    "plain": Layout(lambda _model: LayoutFiles()),
    "hf": Layout(hugging_face_files, hugging_face_obstacles),
    "triton": Layout(triton_files),
})  # fmt: skip
