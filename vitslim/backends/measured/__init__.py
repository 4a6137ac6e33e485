"""Backends that run the ONNX file and take the time."""
