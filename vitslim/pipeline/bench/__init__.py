"""The verb `bench`: latency of ONNX files, of GEMMs, and latency tables."""
