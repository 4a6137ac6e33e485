"""Damaged and hostile files are refused with one sentence, a hint and exit code 5."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vitslim.errors import InputError
from vitslim.workload import load_onnx, read_workload

WriteGraph = Callable[..., Path]


def assert_refused(path: Path, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_onnx(path)
    assert caught.value.exit_code == 5
    assert caught.value.hint


@pytest.fixture
def split(tiny_onnx: Path, tmp_path: Path) -> Path:
    """A model with external weights in `split.data`."""
    path = tmp_path / "model" / "split.onnx"
    path.parent.mkdir()
    onnx.save(onnx.load(tiny_onnx), path, save_as_external_data=True, location="split.data", size_threshold=0)
    return path


def point_to(path: Path, **entries: str) -> None:
    """Change the location of the first external weight."""
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    changed = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in changed.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_a_file_larger_than_2_gib_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)  # takes no space on the disk
    assert_refused(path, "at most 2 GiB, but .* has 3.22 GB")


def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    assert_refused(tmp_path / "pipe.onnx", "not a regular file")
    assert_refused(Path("/dev/null"), "not a regular file")


@pytest.mark.parametrize("location", ["/etc/hostname", "../split.data", "a/../../split.data", "C:\\split.data"])
def test_weights_outside_the_folder_are_refused(split: Path, location: str) -> None:
    (split.parent.parent / "split.data").write_bytes((split.parent / "split.data").read_bytes())
    point_to(split, location=location)
    assert_refused(split, "not a path inside the folder of the model")


def test_a_link_out_of_the_folder_is_refused(split: Path, tmp_path: Path) -> None:
    data = split.parent / "split.data"
    data.rename(tmp_path / "elsewhere.data")
    data.symlink_to(tmp_path / "elsewhere.data")
    assert_refused(split, "outside the folder of the model")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "none.data"}, "does not exist"),
        ({"location": ""}, "a file without a valid name"),
        ({"location": "."}, "does not exist"),
        ({"offset": "-1"}, "the model declares"),
        ({"offset": "999999999999"}, "the model declares"),
        ({"length": "9999999999999"}, "the model declares"),
        ({"length": "3"}, "the model declares"),
        ({"offset": "many"}, "not a number"),
    ],
)
def test_external_data_must_exist_with_the_declared_size(split: Path, entries: dict[str, str], words: str) -> None:
    point_to(split, **entries)
    assert_refused(split, words)


def test_a_truncated_data_file_is_refused(split: Path) -> None:
    data = split.parent / "split.data"
    data.write_bytes(data.read_bytes()[:-100])
    assert_refused(split, "which has .* bytes; the model declares")


def test_valid_external_weights_are_read(split: Path, tiny_onnx: Path) -> None:
    assert read_workload(split).macs == read_workload(tiny_onnx).macs


@pytest.mark.parametrize("dims", [[8, 5], [2**40, 2**20], [-1, 4], [0, 4]])
def test_a_constant_must_have_the_declared_size(write_graph: WriteGraph, dims: list[int]) -> None:
    path = write_graph("y = MatMul(x, w)", w=np.ones((8, 4), np.float32))
    model = onnx.load(path)
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    onnx.save(model, path)
    assert_refused(path, "constant 'w' of .*(has the shape|no valid type or shape)")


def test_typed_fields_must_have_the_declared_number_of_entries(write_graph: WriteGraph) -> None:
    four = helper.make_tensor("w", TensorProto.INT4, [8, 5], [1] * 40)
    typed = helper.make_tensor("s", TensorProto.FLOAT, [5], [0.1] * 5)
    text = "f = DequantizeLinear<axis = 1>(w, s)  y = MatMul(x, f)"
    path = write_graph(text, w=four, s=typed)
    assert len(load_onnx(path).graph.initializer) == 2
    model = onnx.load(path)
    model.graph.initializer[1].float_data.append(0.1)
    onnx.save(model, path)
    assert_refused(path, "requires 5 entries, got 6")
    model = onnx.load(write_graph(text, w=four, s=np.ones(5, np.float32)))
    model.graph.initializer[0].data_type = 99
    onnx.save(model, path)
    assert_refused(path, "no valid type")


def test_constants_of_nodes_must_have_the_declared_size(write_graph: WriteGraph) -> None:
    path = write_graph("c = Constant<value = float[2] {1.0, 2.0}>()  y = Add(x, c)")
    model = onnx.load(path)
    model.graph.node[0].attribute[0].t.dims[0] = 3
    onnx.save(model, path)
    assert_refused(path, "requires 3 entries, got 2")


def test_cycles_and_values_computed_twice_are_refused(write_graph: WriteGraph) -> None:
    path = write_graph("a = Identity(x)  b = Identity(a)  y = Relu(b)", output="float[N, 8] y")
    model = onnx.load(path)
    model.graph.node[0].input[0] = "b"
    onnx.save(model, path)
    assert_refused(path, "reads 'b' before it is computed")
    model.graph.node[0].input[0] = "x"
    model.graph.node[1].output[0] = "a"
    onnx.save(model, path)
    assert_refused(path, "computes the value 'a' twice")


@pytest.mark.parametrize("op", ["MatMul", "DequantizeLinear", "Cast", "Transpose", "Conv"])
def test_operators_need_their_inputs(write_graph: WriteGraph, op: str) -> None:
    path = write_graph("h = Relu(x)  y = Relu(h)", output="float[N, 8] y")
    model = onnx.load(path)
    model.graph.node[0].op_type = op
    del model.graph.node[0].input[:]
    onnx.save(model, path)
    assert_refused(path, f"{op} '' of .* requires . inputs? and 1 outputs?, got 0 and 1")


def test_recursive_functions_are_refused(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("d", 1)]
    calls = helper.make_node("f", ["a"], ["b"], domain="d")
    function = helper.make_function("d", "f", ["a"], ["b"], [calls], opsets)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy")
    graph = helper.make_graph([helper.make_node("f", ["x"], ["y"], domain="d")], "m", [x], [y])
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=opsets), tmp_path / "loop.onnx")
    assert_refused(tmp_path / "loop.onnx", "cannot be inlined")
