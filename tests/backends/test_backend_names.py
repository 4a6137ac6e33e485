from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitslim.backends.registry import Measured, Simulated, parse_backend
from vitslim.backends.simulated.gpu_spec import GpuSpec
from vitslim.backends.simulated.spec import SystolicSpec
from vitslim.errors import InputError, UsageError


def test_known_names(small_model: Path) -> None:
    measured, simulated = parse_backend("onnxruntime:cpu"), parse_backend("sim:systolic")
    assert isinstance(parse_backend("openvino:cpu"), Measured)
    assert isinstance(measured, Measured)
    assert isinstance(simulated, Simulated)
    measured.require()
    simulated.require()
    assert simulated.estimate(small_model, 4).batch == 4
    assert simulated.estimate(small_model, 4).backend == "sim:systolic"


def test_a_mapping_sets_keys() -> None:
    backend = parse_backend({"sim": "systolic", "array": [32, 16], "vector": {"passes": {"softmax": 5}}})
    assert isinstance(backend, Simulated)
    assert isinstance(backend.spec, SystolicSpec)
    assert backend.spec.array == (32, 16)
    assert backend.spec.vector.passes.softmax == 5
    assert backend.spec.vector.passes.norm == 3
    assert backend.spec.dataflow == "ws"
    assert backend.spec.lanes == 16


def test_a_settings_file_says_what_it_stands_on(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("target: h100\nlaunch: {graph_gap_us: 1}\n")
    backend = parse_backend(f"sim:{path}")
    assert isinstance(backend, Simulated)
    assert isinstance(backend.spec, GpuSpec)
    assert (backend.spec.chip, backend.spec.launch.graph_gap_us, backend.spec.calibrated) == ("h100", 1.0, False)
    path.write_text("target: b200\n")
    with pytest.raises(UsageError, match="no simulated backend 'b200'"):
        parse_backend(f"sim:{path}")


def test_a_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("dataflow: os\nsparsity: off\n")
    backend = parse_backend(f"sim:{path}")
    assert isinstance(backend, Simulated)
    assert isinstance(backend.spec, SystolicSpec)
    assert (backend.spec.dataflow, backend.spec.sparsity, backend.spec.array) == ("os", "off", (128, 128))


@pytest.mark.parametrize(
    ("value", "words", "hint"),
    [
        ("onnxruntme:cpu", "no backend 'onnxruntme:cpu'", "did you mean 'onnxruntime:cpu'?"),
        ("onnxruntime", "no backend 'onnxruntime'", "did you mean 'onnxruntime:cpu'?"),
        ("sim:sistolic", "no simulated backend 'sistolic'", "did you mean 'systolic'?"),
        ("sim:", "no backend 'sim:'", "sim:"),
        ("sim:a1000", "no simulated backend 'a1000'", "did you mean 'a100'?"),
        ({"sim": "a100", "launch": {"mode": "graf"}}, "launch.mode: ", 'for example launch.mode: "graph"'),
        ({"sim": "h100", "clock": 3}, "clock: unknown key", "did you mean 'clock_mhz'?"),
        ("", "no backend ''", "onnxruntime:cpu"),
        ({"array": [1, 1]}, "needs the key 'sim'", "{sim: systolic"),
        ({"sim": "systolic", "aray": [1, 1]}, "aray: ", "did you mean 'array'?"),
        ({"sim": "systolic", "array": [32]}, "array.1: ", "for example array: [128, 128]"),
        ({"sim": "systolic", "array": [0, 32]}, "array.0: ", "for example array: [128, 128]"),
        ({"sim": "systolic", "array": "32x32"}, "array: ", "for example array: [128, 128]"),
        ({"sim": "systolic", "dataflow": "rs"}, "dataflow: input should be 'ws', 'os' or 'is'", "for example dataflow"),
        ({"sim": "systolic", "clock_ghz": float("inf")}, "clock_ghz: ", "for example clock_ghz: 1.0"),
        (
            {"sim": "systolic", "vector": {"passes": {"gelu": 0}}},
            "vector.passes.gelu: ",
            "for example vector.passes.gelu: 2",
        ),
        (
            {"sim": "systolic", "array": [1, 2], "overlap": 3, "counters": 4},
            "overlap: .*counters: ",
            "for example overlap",
        ),
    ],
)
def test_wrong_names_and_settings(value: Any, words: str, hint: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_backend(value)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text", ["", "- 1\n- 2\n", "just words", "array: [1, 2", "b: *c\n", "array: &a [*a, *a]", "a: &a [*a]\n"]
)
def test_settings_files_that_are_no_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises((InputError, UsageError)) as caught:
        parse_backend(f"sim:{path}")
    assert caught.value.hint


def test_a_settings_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        parse_backend(f"sim:{tmp_path / 'none.yaml'}")


def test_a_settings_file_that_grows_without_end(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join([*lines, "array: *a39"]))
    with pytest.raises(UsageError, match="array"):
        parse_backend(f"sim:{path}")
