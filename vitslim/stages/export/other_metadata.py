"""Metadata in the forms that OpenVINO Model API and Ultralytics read, besides our own."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from vitslim.graph.model_graph import ModelSource
from vitslim.recipe.formats.file_form import FileForm

MODEL_INFO = "model_info "
"""Beginning of the keys of Model API: the path in the `rt_info` of OpenVINO, parts separated by spaces."""
PIXEL_MAX = 255
RESIZE_TYPES = MappingProxyType({"center": "crop", "squash": "standard", "border": "fit_to_window_letterbox"})
"""Crop mode to `resize_type`. `crop` has no margin: Model API cannot express `crop_pct`."""
INTERPOLATIONS = MappingProxyType({"bilinear": "LINEAR", "bicubic": "CUBIC", "nearest": "NEAREST"})


def other_metadata(source: ModelSource, class_names: Sequence[str], form: FileForm) -> dict[str, str]:
    """Return the entries of both forms, which for a feature extractor describe the input alone.

    Ultralytics has no task for several labels of an image, so such a model has no entries for it.

    class_names: in the order of the outputs; labels are left out unless all outputs have one.
    """
    labels = class_names if len(class_names) == source.classes else ()
    found = {f"{MODEL_INFO}{key}": value for key, value in _model_info(source, labels, form).items()}
    return found | (_ultralytics(source, labels, form) if source.task == "classify" else {})


def _model_info(source: ModelSource, labels: Sequence[str], form: FileForm) -> dict[str, str]:
    """Lists are separated by spaces, so a space in a label becomes `_`. Mean and std are those of pixels up to 255."""
    preprocessing = source.preprocessing
    values = {
        "mean_values": _list([PIXEL_MAX * value for value in preprocessing.mean]),
        "scale_values": _list([PIXEL_MAX * value for value in preprocessing.std]),
        "reverse_input_channels": "False",
        "resize_type": RESIZE_TYPES[preprocessing.crop_mode],
        "layout": f"{form.input_name}:NCHW",
    }
    if preprocessing.interpolation in INTERPOLATIONS:
        values["interpolation_mode"] = INTERPOLATIONS[preprocessing.interpolation]
    if preprocessing.crop_mode == "border":
        values["pad_value"] = str(round(PIXEL_MAX * sum(preprocessing.mean) / len(preprocessing.mean)))
    if source.task != "features":
        values["model_type"] = "Classification"
        values["multilabel"] = str(source.task == "multilabel")
    if labels:
        values["labels"] = " ".join("_".join(label.split()) or "_" for label in labels)
    return values


def _ultralytics(source: ModelSource, labels: Sequence[str], form: FileForm) -> dict[str, str]:
    """Values are Python literals. Outputs without a label are named by their index."""
    channels, height, width = source.image
    names = dict(enumerate(labels or map(str, range(source.classes))))
    return {
        "task": "classify",
        "names": repr(names),
        "imgsz": repr([height, width]),
        "channels": str(channels),
        "stride": "1",
        "batch": str(form.batch or 1),
        "args": repr({"dynamic": form.batch is None}),
    }


def _list(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)
