"""The traced graph equals the timm model: same outputs, same names, any batch size; errors have a reason."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import load_file

from vitslim.errors import UsageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm

NAME = "vit_tiny_patch16_224"
SWIN = {"img_size": 56, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 5}
aten = torch.ops.aten


def eager(name: str, kwargs: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(name, pretrained=False, **kwargs).eval()


def small(name: str, tiny: dict[str, Any]) -> dict[str, Any]:
    return dict(SWIN) if name.startswith("swin") else dict(tiny)


def assert_same_model(graph: ModelGraph, model: torch.nn.Module) -> None:
    for batch in (1, 2, 5):
        images = torch.randn(batch, *graph.source.image, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            assert torch.equal(graph.module(images), model(images)), f"batch {batch}"
    assert dict(graph.module.named_parameters()).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize(
    "name",
    [
        NAME,
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "beit_base_patch16_224",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_equals_the_eager_model_bit_for_bit_without_no_ops(name: str, tiny_kwargs: dict[str, Any]) -> None:
    kwargs = small(name, tiny_kwargs)
    graph = trace_timm(name, kwargs)
    assert_same_model(graph, eager(name, kwargs))
    assert_fused_qkv_is_split(graph)


def test_full_size_deit_tiny_with_real_weights(shared_data: Path) -> None:
    checkpoint = shared_data / "deit_tiny" / "model.safetensors"
    graph = trace_timm("deit_tiny_patch16_224", {}, checkpoint)
    model = eager("deit_tiny_patch16_224", {})
    model.load_state_dict(load_file(checkpoint))
    assert_same_model(graph, model)
    assert graph.source.image == (3, 224, 224)
    assert graph.source.classes == 1000
    assert graph.source.preprocessing.mean == (0.485, 0.456, 0.406)
    assert graph.source.preprocessing.interpolation == "bicubic"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["swin_tiny_patch4_window7_224", "beit_base_patch16_224", "deit3_small_patch16_224", "twins_pcpvt_small"],
)
def test_full_size_models(name: str) -> None:
    assert_same_model(trace_timm(name, {}), eager(name, {}))


def test_a_rope_model_is_traced_through_its_autocast_regions() -> None:
    kwargs = {"img_size": 56, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 3}
    assert_same_model(trace_timm("eva02_tiny_patch14_224", kwargs), eager("eva02_tiny_patch14_224", kwargs))


def assert_fused_qkv_is_split(graph: ModelGraph) -> None:
    """Fused qkv is a split, and no-op nodes are removed."""
    calls = [node.target for node in graph.module.graph.nodes if node.op == "call_function"]
    assert aten.split_with_sizes.default in calls
    unwanted = (aten.unbind.int, aten.dropout.default, aten.contiguous.default, aten.view.default, aten.pad.default)
    assert not set(unwanted) & set(calls)
    assert not [node for node in graph.module.graph.nodes if node.op == "call_module"]


def test_scale_of_attention_is_explicit(tiny_graph: ModelGraph) -> None:
    nodes = tiny_graph.module.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default)
    assert [node.kwargs["scale"] for node in nodes] == [1 / 32**0.5] * 2


def test_every_buffer_has_one_use() -> None:
    graph = trace_timm("vit_small_patch16_rope_224", {"depth": 2, "img_size": 32, "patch_size": 8, "num_classes": 3})
    buffers = dict(graph.module.named_buffers())
    uses = [node for node in graph.module.graph.nodes if node.op == "get_attr" and node.target in buffers]
    assert buffers
    assert len({node.target for node in uses}) == len(uses) == len(buffers)
    assert all(len(node.users) == 1 for node in uses)


def test_the_seed_determines_the_weights_and_the_global_generator_is_unchanged(tiny_kwargs: dict[str, Any]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = (trace_timm(NAME, tiny_kwargs, seed=seed).module.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_trains_with_finite_gradients_and_a_wrapper_can_switch_modes(tiny_graph: ModelGraph) -> None:
    wrapper = torch.nn.Sequential(tiny_graph.module).train()
    assert tiny_graph.module.training
    wrapper(torch.randn(3, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tiny_graph.module.parameters())
    assert not wrapper.eval()[0].training


def test_deep_copy_is_independent(tiny_graph: ModelGraph) -> None:
    images = torch.randn(2, 3, 32, 32)
    before = tiny_graph.module(images)
    twin = copy.deepcopy(tiny_graph.module)
    assert torch.equal(twin(images), before)
    with torch.no_grad():
        twin.get_parameter("head.bias").add_(1)
    assert torch.equal(tiny_graph.module(images), before)


def test_exports_to_onnx_with_a_dynamic_batch(tiny_graph: ModelGraph, tmp_path: Path) -> None:
    program = torch.onnx.export(
        tiny_graph.module, (torch.randn(2, 3, 32, 32),), dynamo=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},), opset_version=21,
    )  # fmt: skip
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 5):
        images = torch.randn(batch, 3, 32, 32)
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert abs(logits - tiny_graph.module(images).detach().numpy()).max() < 1e-5


def test_one_channel_images_get_one_mean(tiny_kwargs: dict[str, Any]) -> None:
    source = trace_timm("deit_tiny_patch16_224", {**tiny_kwargs, "in_chans": 1}).source
    assert source.image == (1, 32, 32)
    assert len(source.preprocessing.mean) == len(source.preprocessing.std) == 1
    assert source.classes == 10


def test_an_unknown_model_gets_the_closest_name_as_a_hint() -> None:
    with pytest.raises(UsageError, match="no model 'deit_tinny_patch16_224'") as error:
        trace_timm("deit_tinny_patch16_224", {})
    assert error.value.exit_code == 2
    assert "deit_tiny_patch16_224" in error.value.hint


@pytest.mark.parametrize("name", ["hf-hub:timm/deit_tiny_patch16_224.fb_in1k", "", "zzzz"])
def test_names_of_remote_models_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        trace_timm(name, {})


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"img_sise": 32}, "img_sise"),
        ({"checkpoint_path": "x"}, "checkpoint_path"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"depth": "two"}, "depth='two'"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError) as error:
        trace_timm(NAME, kwargs)
    assert word in error.value.message
    assert "\n" not in error.value.message
