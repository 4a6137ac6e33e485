"""Backends that compute latency from the operators of an ONNX file: one folder per family of targets. No torch.

To add a target: a folder with a `load_simulator` function, its family in `vitslim.backends.registry.SIMULATORS`, and
its name in `vitslim.recipe.backend_names.SIMULATED_TARGETS`.
"""
