"""Placement of quantizers: the choice of static, dynamic or float activations.

Candidates have the weights and the scales that quantization found. They are written as the recipe exports them, judged
by running the file in ONNX Runtime, and measured on the first backend of the recipe that runs ONNX files.
"""

from vitslim.stages.quantize.placement.place import place

__all__ = ["place"]
