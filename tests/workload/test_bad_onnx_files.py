"""Damaged ONNX files are refused with an error and a hint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from vitslim.errors import InputError
from vitslim.workload import read_metadata, read_workload


def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "words.onnx").write_text("this is no model at all")
    (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(4000))
    (tmp_path / "zeros.onnx").write_bytes(bytes(64))
    for name, words in {
        "missing.onnx": "does not exist",
        "empty.onnx": "is empty",
        "words.onnx": "not an ONNX file",
        "noise.onnx": "not an ONNX file",
        "zeros.onnx": "not an ONNX file",
        ".": "got the folder",
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            read_workload(tmp_path / name)
        assert caught.value.exit_code == 5
        assert caught.value.hint


def test_a_file_truncated_anywhere_is_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    whole = tiny_onnx.read_bytes()
    cut = tmp_path / "cut.onnx"
    for fraction in (0.0001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999):
        cut.write_bytes(whole[: int(fraction * len(whole))])
        with pytest.raises(InputError) as caught:
            read_workload(cut)
        assert caught.value.hint


def test_a_missing_constant_is_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    lost = model.graph.initializer.pop()
    onnx.save(model, tmp_path / "lost.onnx")
    with pytest.raises(InputError, match=f"'{lost.name}', which does not exist in the file"):
        read_workload(tmp_path / "lost.onnx")


def test_contradicting_shapes_are_refused(write_graph: Callable[..., Path]) -> None:
    path = write_graph("y = MatMul(x, w)", w=np.ones((9, 4), np.float32))
    with pytest.raises(InputError, match="contradict each other"):
        read_workload(path)


def test_an_unknown_shape_of_a_matmul_is_refused(write_graph: Callable[..., Path]) -> None:
    path = write_graph("a = com.microsoft.Strange(x)  y = MatMul(a, w)", w=np.ones((8, 4), np.float32))
    with pytest.raises(InputError, match="shape of 'a'"):
        read_workload(path)


def test_a_fixed_batch_size_must_be_the_requested_one(tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "fixed.onnx")
    assert read_workload(tmp_path / "fixed.onnx", 2).batch == 2
    with pytest.raises(InputError, match="fixed batch size of 2, got 1"):
        read_workload(tmp_path / "fixed.onnx", 1)


def test_external_weights_are_read(tiny_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.onnx"
    onnx.save(onnx.load(tiny_onnx), path, save_as_external_data=True, location="split.data", size_threshold=0)
    assert read_workload(path).macs == read_workload(tiny_onnx).macs
    (tmp_path / "split.data").unlink()
    with pytest.raises(InputError, match=r"split.data.*does not exist"):
        read_workload(path)


def test_json_metadata_is_decoded(write_graph: Callable[..., Path]) -> None:
    path = write_graph("y = Relu(x)", output="float[N, 8] y")
    model = onnx.load(path)
    for key, value in {"vitslim.layers": '{"head": "INT8"}', "vitslim.note": "plain text", "other": "1"}.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    assert read_metadata(path) == {"layers": {"head": "INT8"}, "note": "plain text"}
