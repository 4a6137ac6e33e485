"""The verb `inspect`: the contents of an ONNX file, its kernels, and its integers."""
