"""The workload of an ONNX file as a typed list of operators, which every backend reads. Imports no torch."""

from vitslim.workload.onnx_file import check_onnx_file, load_onnx, read_metadata
from vitslim.workload.operators import Kernel, Operator, Workload
from vitslim.workload.read import read_workload

__all__ = ["Kernel", "Operator", "Workload", "check_onnx_file", "load_onnx", "read_metadata", "read_workload"]
