"""Checkpoints in the formats that people have give the logits of the model that they were saved from, or a reason."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.trace import trace_timm

NAME = "vit_tiny_patch16_224"
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
State = dict[str, torch.Tensor]


@pytest.fixture
def state(tiny_graph: ModelGraph) -> State:
    """The weights of the two-block model with ten classes, by timm's names."""
    return {name: tensor.detach().clone() for name, tensor in tiny_graph.module.state_dict().items()}


@pytest.fixture
def no_classes(tiny_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the model without its number of classes."""
    return {key: value for key, value in tiny_kwargs.items() if key != "num_classes"}


def zeros(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def named(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


FORMS: dict[str, Any] = {
    "a state dict": lambda s: s,
    "timm": lambda s: {"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": named(s, "module."),
                       "metric": np.float64(0.5)},
    "averaged weights first": lambda s: {"state_dict": zeros(s), "state_dict_ema": s},
    "model_ema": lambda s: {"model": zeros(s), "model_ema": s},
    "Lightning and torch.compile": lambda s: {"state_dict": named(s, "model._orig_mod.")},
    "a backbone and a head": lambda s: {("" if n.startswith("head") else "backbone.") + n: t for n, t in s.items()},
    "the image tower of CLIP": lambda s: named(s, "visual.trunk.") | {"text.weight": torch.zeros(3)},
    "half precision and a buffer": lambda s: {n: t.double() for n, t in s.items()},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_logits_of_the_model(
    form: str, state: State, tiny_graph: ModelGraph, no_classes: dict[str, Any], tmp_path: Path
) -> None:
    graph = trace_timm(NAME, no_classes, saved(FORMS[form](state), tmp_path / "weights.pth"))
    assert graph.source.classes == graph.source.kwargs["num_classes"] == 10
    assert torch.equal(graph.module(IMAGES), tiny_graph.module(IMAGES))
    assert graph.source.weights[-1] == "num_classes = 10, from the head of the checkpoint"


def test_the_file_format_before_zip_archives(
    state: State, tiny_graph: ModelGraph, tiny_kwargs: dict[str, Any], tmp_path: Path
) -> None:
    path = saved(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    graph = trace_timm(NAME, tiny_kwargs, path)
    assert torch.equal(graph.module(IMAGES), tiny_graph.module(IMAGES))
    assert graph.source.weights == ()


def test_an_entry_can_be_named(
    state: State, tiny_graph: ModelGraph, tiny_kwargs: dict[str, Any], tmp_path: Path
) -> None:
    content = {"state_dict_ema": zeros(state), "teacher": named(state, "backbone.")}
    path = saved(content, tmp_path / "two.pth")
    graph = trace_timm(NAME, tiny_kwargs, path, entry="teacher")
    assert torch.equal(graph.module(IMAGES), tiny_graph.module(IMAGES))
    assert not trace_timm(NAME, tiny_kwargs, path).module(IMAGES).any()
    with pytest.raises(InputError, match="no entry 'student'") as error:
        trace_timm(NAME, tiny_kwargs, path, entry="student")
    assert "state_dict_ema, teacher" in error.value.hint
    with pytest.raises(InputError, match="no tensors by name") as error:
        trace_timm(NAME, tiny_kwargs, saved({"epoch": 3, "teacher": state}, tmp_path / "teacher.pth"))
    assert "checkpoint_entry" in error.value.hint


def test_another_image_size_and_other_channels_are_adapted_as_timm_does(
    state: State, no_classes: dict[str, Any], tmp_path: Path
) -> None:
    path = saved(state, tmp_path / "weights.pth")
    kwargs = {**no_classes, "img_size": 48, "in_chans": 1, "num_classes": 10}
    overlay = {"file": str(path), "num_classes": 10, "input_size": (3, 224, 224)}
    expected = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()
    graph = trace_timm(NAME, kwargs, path)
    images = torch.randn(2, 1, 48, 48)
    assert torch.equal(graph.module(images), expected(images))
    assert set(graph.source.weights) == {
        "pos_embed adapted from 1x17x64 to 1x37x64", "patch_embed.proj.weight adapted from 64x3x8x8 to 64x1x8x8",
    }  # fmt: skip
    one_channel = saved(graph.module.state_dict(), tmp_path / "gray.pth")
    assert trace_timm(NAME, {**no_classes, "img_size": 48}, one_channel).source.image == (1, 48, 48)
    with pytest.raises(InputError, match=r"for images with 1 channels, model\.kwargs\.in_chans is 3"):
        trace_timm(NAME, {**no_classes, "img_size": 48, "in_chans": 3}, one_channel)


def test_names_of_transformers_are_translated(
    state: State, tiny_graph: ModelGraph, tiny_kwargs: dict[str, Any], tmp_path: Path
) -> None:
    path = saved(of_transformers(state), tmp_path / "pytorch_model.bin")
    graph = trace_timm(NAME, tiny_kwargs, path)
    assert torch.equal(graph.module(IMAGES), tiny_graph.module(IMAGES))
    assert "parameter names of transformers translated to those of timm" in graph.source.weights


def of_transformers(state: State) -> State:
    """Return the weights of a ViT under the names of transformers' ViTForImageClassification."""
    found: State = {"vit.pooler.dense.weight": torch.zeros(64, 64)}
    outside = {"cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings",
               "patch_embed.proj": "vit.embeddings.patch_embeddings.projection", "norm": "vit.layernorm",
               "head": "classifier"}  # fmt: skip
    inside = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
              "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}  # fmt: skip
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        if not name.startswith("blocks."):
            found[f"{outside[layer]}.{kind}" if layer else outside[name]] = tensor
            continue
        _, index, rest = layer.split(".", 2)
        start = f"vit.encoder.layer.{index}"
        if rest == "attn.qkv":
            for part, value in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[f"{start}.attention.attention.{part}.{kind}"] = value.clone()
        else:
            found[f"{start}.{inside[rest]}.{kind}"] = tensor
    return found


def test_arrays_of_the_original_release(tiny_kwargs: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = flax_arrays(rng)
    np.savez(tmp_path / "vit.npz", **arrays)
    expected = timm.create_model(NAME, pretrained=False, **tiny_kwargs).eval()
    expected.load_pretrained(str(tmp_path / "vit.npz"))
    graph = trace_timm(NAME, tiny_kwargs, tmp_path / "vit.npz")
    assert torch.equal(graph.module(IMAGES), expected(IMAGES))
    with pytest.raises(InputError, match=r"has 10 classes, model\.kwargs\.num_classes is 7"):
        trace_timm(NAME, {**tiny_kwargs, "num_classes": 7}, tmp_path / "vit.npz")
    del arrays["Transformer/encoderblock_1/LayerNorm_0/scale"]
    np.savez(tmp_path / "part.npz", **arrays)
    with pytest.raises(InputError, match="does not fit"):
        trace_timm(NAME, tiny_kwargs, tmp_path / "part.npz")


def flax_arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return a two-block ViT in the layout of Google's release."""
    shapes = {"cls": (1, 1, 64), "embedding/kernel": (8, 8, 3, 64), "embedding/bias": (64,),
              "Transformer/posembed_input/pos_embedding": (1, 17, 64), "Transformer/encoder_norm/scale": (64,),
              "Transformer/encoder_norm/bias": (64,), "head/kernel": (64, 10), "head/bias": (10,)}  # fmt: skip
    for block in range(2):
        start = f"Transformer/encoderblock_{block}"
        attention = f"{start}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes |= {f"{attention}/{part}/kernel": (64, 2, 32), f"{attention}/{part}/bias": (2, 32)}
        shapes |= {f"{attention}/out/kernel": (2, 32, 64), f"{attention}/out/bias": (64,)}
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{start}/{norm}/scale": (64,), f"{start}/{norm}/bias": (64,)}
        for layer, (before, after) in enumerate(((64, 256), (256, 64))):
            dense = f"{start}/MlpBlock_3/Dense_{layer}"
            shapes |= {f"{dense}/kernel": (before, after), f"{dense}/bias": (after,)}
    return {name: rng.normal(size=shape, scale=0.1).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def hub_folder(state: State, no_classes: dict[str, Any], tmp_path: Path) -> Path:
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    config = {"architecture": NAME, "num_classes": 10, "model_args": no_classes,
              "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear",
                                 "crop_pct": 0.7, "input_size": [3, 224, 224], "tag": "mine"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_hub_folder_gives_weights_arguments_and_preprocessing(
    hub_folder: Path, tiny_graph: ModelGraph, tmp_path: Path
) -> None:
    graph = trace_timm(NAME, {}, hub_folder)
    assert torch.equal(graph.module(IMAGES), tiny_graph.module(IMAGES))
    found = graph.source.preprocessing
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (found.interpolation, found.crop_pct, graph.source.image) == ("bilinear", 0.7, (3, 32, 32))
    save_graph(graph, tmp_path)
    assert load_graph(tmp_path).source == graph.source


def test_a_hub_folder_that_contradicts_the_recipe_is_refused(hub_folder: Path) -> None:
    with pytest.raises(InputError, match=f"holds a '{NAME}', model.timm is 'deit_tiny_patch16_224'") as error:
        trace_timm("deit_tiny_patch16_224", {}, hub_folder)
    assert NAME in error.value.hint
    with pytest.raises(InputError, match=r"has depth = 2, model.kwargs.depth is 3"):
        trace_timm(NAME, {"depth": 3}, hub_folder)


def test_half_precision_is_widened(state: State, tiny_kwargs: dict[str, Any], tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    found = trace_timm(NAME, tiny_kwargs, tmp_path / "half.safetensors").module.state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert all(torch.equal(found[name], half[name].float()) for name in half)
