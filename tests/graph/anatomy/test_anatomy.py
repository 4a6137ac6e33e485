"""Blocks, attention, roles and class token are found in the graphs of several model families."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitslim.graph.anatomy import Anatomy, Block, find_anatomy
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import insert_fake_quant
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm

SWIN = {"img_size": 56, "embed_dim": 32, "depths": (2, 1), "num_heads": (2, 4), "num_classes": 5}
ROLES = ["qkv", "proj", "fc1", "fc2"]


def anatomy_of(name: str, kwargs: dict[str, Any]) -> Anatomy:
    return find_anatomy(trace_timm(name, kwargs))


def roles(anatomy: Anatomy) -> list[str]:
    return [layer.role for layer in anatomy.linears]


@pytest.mark.parametrize(
    ("name", "prefix", "heads"),
    [
        ("vit_tiny_patch16_224", 1, 1),
        ("deit_tiny_distilled_patch16_224", 2, 2),
        ("deit3_small_patch16_224", 1, 1),
        ("beit_base_patch16_224", 1, 1),
    ],
)
def test_plain_transformers(name: str, prefix: int, heads: int, tiny_kwargs: dict[str, Any]) -> None:
    anatomy = anatomy_of(name, tiny_kwargs)
    assert [block.name for block in anatomy.blocks] == ["blocks.0", "blocks.1"]
    assert roles(anatomy) == ["patch_embed", *ROLES, *ROLES, *["head"] * heads]
    assert anatomy.has_class_token
    assert anatomy.prefix_tokens == prefix
    for block in anatomy.blocks:
        assert block.attention is not None
        assert block.attention.node.target is torch.ops.aten.scaled_dot_product_attention.default
        assert (block.attention.heads, block.attention.scale) == (2, 1 / 32**0.5)
        assert block.attention.biased == name.startswith("beit")
        assert not block.attention.windowed
        assert block.mlp == (f"{block.name}.mlp.fc1.weight", f"{block.name}.mlp.fc2.weight")
        assert block.squeeze is None
        assert norms_after_attention(block) == [f"{block.name}.norm2.weight"]


def norms_after_attention(block: Block) -> list[str]:
    """The weights of the norms that read the residual between attention and MLP."""
    assert block.attention_residual is not None
    users = [user for user in block.attention_residual.users if user.target is torch.ops.aten.layer_norm.default]
    return [norm.args[2].target for norm in users]


def test_swin_has_windowed_attention_of_matmuls() -> None:
    anatomy = anatomy_of("swin_tiny_patch4_window7_224", SWIN)
    assert [block.name for block in anatomy.blocks] == ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"]
    assert roles(anatomy) == ["patch_embed", *ROLES, *ROLES, "other", *ROLES, "head"]
    attentions = [block.attention for block in anatomy.blocks if block.attention]
    assert [attention.heads for attention in attentions] == [2, 2, 4]
    assert all(attention.biased for attention in attentions)
    assert attentions[0].windowed
    assert attentions[0].scale == pytest.approx(16**-0.5)
    assert not anatomy.has_class_token
    assert anatomy.prefix_tokens == 0
    residuals = [block.attention_residual for block in anatomy.blocks]  # after the windows are merged
    assert all(node is not None and node.target is torch.ops.aten.add.Tensor for node in residuals)


def test_features_of_layers(tiny_graph: ModelGraph) -> None:
    layers = {layer.weight: layer for layer in find_anatomy(tiny_graph).linears}
    patch, qkv = layers["patch_embed.proj.weight"], layers["blocks.1.attn.qkv.weight"]
    assert (patch.in_features, patch.out_features, patch.block) == (3 * 8 * 8, 64, "")
    assert (qkv.in_features, qkv.out_features, qkv.block) == (64, 192, "blocks.1")


def test_no_class_token(tiny_kwargs: dict[str, Any]) -> None:
    pooled = {"class_token": False, "global_pool": "avg"}
    anatomy = anatomy_of("vit_tiny_patch16_224", {**tiny_kwargs, **pooled})
    assert not anatomy.has_class_token
    assert anatomy.prefix_tokens == 0
    registers = anatomy_of("vit_tiny_patch16_224", {**tiny_kwargs, **pooled, "reg_tokens": 3})
    assert not registers.has_class_token
    assert registers.prefix_tokens == 3


def test_registers_count_as_prefix(tiny_kwargs: dict[str, Any]) -> None:
    anatomy = anatomy_of("vit_tiny_patch16_224", {**tiny_kwargs, "reg_tokens": 3})
    assert anatomy.has_class_token
    assert anatomy.prefix_tokens == 4


def test_gated_mlp_and_rope() -> None:
    kwargs = {"img_size": 56, "embed_dim": 64, "depth": 1, "num_heads": 2, "num_classes": 3}
    assert roles(anatomy_of("eva02_tiny_patch14_224", kwargs)) == ["patch_embed", *ROLES, "head"]


def test_a_network_without_attention() -> None:
    anatomy = anatomy_of("resnet18", {"num_classes": 3})
    assert all(block.attention is None for block in anatomy.blocks)
    assert roles(anatomy).count("head") == roles(anatomy).count("patch_embed") == 1
    assert not anatomy.has_class_token


def test_quantized_layers_keep_their_roles(tiny_graph: ModelGraph) -> None:
    before = find_anatomy(tiny_graph)
    sites = [FakeQuantSite(layer.weight, 8, 8) for layer in before.linears]
    after = find_anatomy(insert_fake_quant(tiny_graph, sites))
    assert [(x.weight, x.role, x.block) for x in after.linears] == [(x.weight, x.role, x.block) for x in before.linears]
    assert [block.name for block in after.blocks] == [block.name for block in before.blocks]
    assert all(block.attention_residual for block in after.blocks)
