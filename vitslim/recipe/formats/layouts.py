"""Names of the layouts in which the folder of a run holds its model."""

from __future__ import annotations

LAYOUTS: dict[str, str] = {
    "plain": "model.onnx",
    "hf": "config.json, preprocessor_config.json and onnx/model.onnx (model_quantized.onnx, model_fp16.onnx), which "
    "Optimum and Transformers.js load as `vit` or `deit`",
    "triton": "NAME/1/model.onnx and NAME/config.pbtxt, a model repository of Triton Inference Server; NAME is that of "
    "the recipe",
}
"""Layout by name, with one line that describes it."""
