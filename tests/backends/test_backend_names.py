from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitslim.backends.registry import RUNTIMES, SIMULATORS, Measured, Simulated, parse_backend
from vitslim.backends.simulated.gpu.simulator import GpuSimulator
from vitslim.backends.simulated.gpu.spec import GpuSpec
from vitslim.backends.simulated.systolic.simulator import SystolicSimulator
from vitslim.backends.simulated.systolic.spec import SystolicSpec
from vitslim.errors import InputError, UsageError
from vitslim.recipe.backend_names import MEASURED, SIMULATED_TARGETS, backend_name, known_backends


def array_spec(value: Any) -> SystolicSpec:
    backend = parse_backend(value)
    assert isinstance(backend, Simulated)
    assert isinstance(backend.simulator, SystolicSimulator)
    return backend.simulator.spec


def gpu_spec(value: Any) -> GpuSpec:
    backend = parse_backend(value)
    assert isinstance(backend, Simulated)
    assert isinstance(backend.simulator, GpuSimulator)
    return backend.simulator.spec


def test_every_name_has_a_backend() -> None:
    assert tuple(RUNTIMES) == MEASURED
    assert set(SIMULATORS) == set(SIMULATED_TARGETS.values())
    assert [parse_backend(name).name for name in known_backends()] == list(known_backends())


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
    spec = array_spec({"sim": "systolic", "array": [32, 16], "vector": {"passes": {"softmax": 5}}})
    assert spec.array == (32, 16)
    assert spec.vector.passes.softmax == 5
    assert spec.vector.passes.norm == 3
    assert spec.dataflow == "ws"
    assert spec.lanes == 16


def test_a_settings_file_names_the_target_that_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("target: h100\nlaunch: {graph_gap_us: 1}\n")
    spec = gpu_spec(f"sim:{path}")
    assert (spec.chip, spec.launch.graph_gap_us, spec.calibrated) == ("h100", 1.0, False)
    path.write_text("target: b200\n")
    with pytest.raises(UsageError, match="no simulated backend 'b200'"):
        parse_backend(f"sim:{path}")
    path.write_text("target: [h100]\n")
    with pytest.raises(UsageError, match="target: input should be a name"):
        parse_backend(f"sim:{path}")


def test_a_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("dataflow: os\nsparsity: off\n")
    spec = array_spec(f"sim:{path}")
    assert (spec.dataflow, spec.sparsity, spec.array) == ("os", "off", (128, 128))


@pytest.mark.parametrize(
    ("value", "words", "hint"),
    [
        ("onnxruntme:cpu", "no backend 'onnxruntme:cpu'", "did you mean 'onnxruntime:"),
        ("onnxruntime", "no backend 'onnxruntime'", "did you mean 'onnxruntime:"),
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
def test_settings_files_that_are_not_a_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises((InputError, UsageError)) as caught:
        parse_backend(f"sim:{path}")
    assert caught.value.hint


def test_a_missing_settings_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        parse_backend(f"sim:{tmp_path / 'none.yaml'}")


@pytest.mark.parametrize("key", ["array", "target"])
def test_a_settings_file_that_grows_without_end(tmp_path: Path, key: str) -> None:
    lines = ["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join([*lines, f"{key}: *a39"]))
    with pytest.raises(UsageError, match=key):
        parse_backend(f"sim:{path}")


def test_settings_are_named_as_in_a_recipe() -> None:
    settings = {"sim": "fact", "ep": {"topk_ratio": 0.5, "onehot_margin": None}, "out_of_order": False}
    assert backend_name(settings) == "sim:fact(ep.topk_ratio=0.5, ep.onehot_margin=null, out_of_order=false)"
    assert backend_name({"sim": "systolic", "array": [32, 32]}) == "sim:systolic(array=[32, 32])"
