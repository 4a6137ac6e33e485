"""Backends that compute latency from the operators of the ONNX file. No torch, no simulator: closed forms."""
