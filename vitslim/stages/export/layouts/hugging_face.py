"""A folder that Optimum and Transformers.js load as a `vit` or `deit` image classifier.

Both run the ONNX file alone. They read the class names from `config.json` and the preprocessing from
`preprocessor_config.json`; the sizes in `config.json` describe the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

from vitslim.files import LayoutFiles
from vitslim.graph.edits.fake_quant import quantized_layers
from vitslim.graph.model_graph import ModelGraph, Preprocessing
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.graph.sketch.model_sketch import SketchLinear
from vitslim.stages.export.layouts.layout import ExportedModel
from vitslim.version import __version__
from vitslim.workload.contents.read_contents import read_contents
from vitslim.workload.onnx_file import load_onnx

RESAMPLE = MappingProxyType({"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5})
"""Interpolation to the filter of Pillow."""
RGB = 3
PLAIN_HINT = "use `layout: plain`, or choose another model"


def hugging_face_obstacles(graph: ModelGraph) -> Iterator[tuple[str, str]]:
    """Yield the reasons that `vit` and `deit` of transformers cannot describe a model, each with a hint."""
    source, found = graph.source, sketch(graph)
    reason = found.squeeze_obstacle.partition(", which")[0]
    if not reason and len(_convolutions(found)) != 1:
        reason = "its patch embedding is not one convolution"
    if source.task == "features":
        yield f"'{source.timm}' has no classifier, and the layout is that of an image classifier", PLAIN_HINT
    if reason or not found.token_axes:
        because = reason or "it has no blocks of attention over tokens"
        yield f"`vit` and `deit` of transformers cannot describe '{source.timm}': {because}", PLAIN_HINT
    channels, height, width = source.image
    if channels != RGB:
        message = f"the image processors of transformers give {RGB} channels, and '{source.timm}' takes {channels}"
        yield message, PLAIN_HINT
    mode = source.preprocessing.crop_mode
    if mode == "border" or (mode == "center" and height != width):
        shown = "a border around the image" if mode == "border" else f"a center crop of {height}x{width}"
        yield f"the image processors of transformers have no {shown}", "use `layout: plain`"


def hugging_face_files(model: ExportedModel) -> LayoutFiles:
    """Return `config.json` and `preprocessor_config.json`, and the path of the model that Transformers.js expects."""
    config, notes = _config(model)
    preprocessor = _preprocessor(model.graph.source.preprocessing, model.graph.source.image[1:])
    texts = {"config.json": _json(config), "preprocessor_config.json": _json(preprocessor)}
    notes = (*notes, *_shifted(preprocessor))
    return LayoutFiles(f"onnx/{_model_name(model)}", texts, notes)


def _model_name(model: ExportedModel) -> str:
    """Return the file name that Transformers.js expects for the type of the weights."""
    if quantized_layers(model.graph.module):
        return "model_quantized.onnx"
    types = {layer.container for layer in read_contents(load_onnx(model.path)).layers}
    return "model_fp16.onnx" if "FLOAT16" in types else "model.onnx"


def _config(model: ExportedModel) -> tuple[dict[str, Any], tuple[str, ...]]:
    source, found = model.graph.source, sketch(model.graph)
    kind, prefix = ("deit", "DeiT") if source.timm.startswith("deit") else ("vit", "ViT")
    names = model.labels or tuple(f"LABEL_{index}" for index in range(source.classes))
    channels, height, width = source.image
    patch = _patch_size(found)
    sizes, notes = _block_sizes(found)
    config = {
        "model_type": kind,
        "architectures": [f"{prefix}ForImageClassification"],
        "image_size": height if height == width else [height, width],
        "patch_size": patch[0] if patch[0] == patch[1] else list(patch),
        "num_channels": channels,
        "hidden_size": _convolutions(found)[0].out_features,
        "num_hidden_layers": len(found.blocks),
        **sizes,
        "hidden_act": "gelu",
        "problem_type": f"{'multi' if source.task == 'multilabel' else 'single'}_label_classification",
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "vitslim": {"model": source.timm, "version": __version__},
    }
    return config, notes


def _convolutions(found: ModelSketch) -> list[SketchLinear]:
    return [one for one in found.linears if one.convolution]


def _patch_size(found: ModelSketch) -> tuple[int, int]:
    """Return height and width of the kernel of the patch embedding."""
    weight = _convolutions(found)[0].weight
    return found.axes[f"{weight}:2"], found.axes[f"{weight}:3"]


def _block_sizes(found: ModelSketch) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the sizes of a block, the largest where pruned blocks differ, and a note on those that differ."""
    sizes, differing = {}, []
    for key, axis in (("num_attention_heads", "heads"), ("intermediate_size", "mlp")):
        widths = [found.axes.get(f"{block}.{axis}", 0) for block in found.blocks]
        sizes[key] = max(widths)
        if len(set(widths)) > 1:
            differing.append(f"{key} {min(widths)} to {max(widths)}")
    note = f"config.json states the largest size of a block; blocks differ: {', '.join(differing)}"
    return sizes, (f"{note}. Only classes that run the ONNX file can load this folder",) if differing else ()


def _preprocessor(preprocessing: Preprocessing, size: tuple[int, ...]) -> dict[str, Any]:
    """Return the preprocessing of timm in the words of transformers.

    `center` scales the shorter edge, as BitImageProcessor does; `squash` scales both, as DeiTImageProcessor does.
    """
    height, width = size
    scaled = [math.floor(edge / preprocessing.crop_pct) for edge in size]
    is_center = preprocessing.crop_mode == "center"
    return {
        "image_processor_type": "BitImageProcessor" if is_center else "DeiTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": scaled[0]} if is_center else {"height": scaled[0], "width": scaled[1]},
        "resample": RESAMPLE[preprocessing.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _shifted(preprocessor: dict[str, Any]) -> Iterator[str]:
    """Yield a note if timm and transformers crop different pixels: they round half a pixel differently."""
    sizes, crop = preprocessor["size"], preprocessor["crop_size"]
    if any((sizes.get(edge, sizes.get("shortest_edge")) - crop[edge]) % 2 for edge in crop):
        yield "preprocessor_config.json: the image processors of transformers may crop one pixel off the crop of timm"


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
