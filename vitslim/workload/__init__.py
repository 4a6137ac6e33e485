"""What runs: a typed list of operators read from the ONNX file, so every backend judges the same file. No torch."""

from vitslim.workload.file import check_onnx_file, load_onnx, read_metadata
from vitslim.workload.operators import Kernel, Operator, Workload
from vitslim.workload.read import read_workload

__all__ = ["Kernel", "Operator", "Workload", "check_onnx_file", "load_onnx", "read_metadata", "read_workload"]
