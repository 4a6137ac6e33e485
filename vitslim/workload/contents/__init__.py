"""The contents of an ONNX file for `inspect`: layers, weights, scales and claims of the metadata."""
