"""Translate parameter names of Hugging Face transformers (ViT, DeiT, DINOv2, Swin) to those of timm.

The result has the names of the original releases; the checkpoint filters of timm convert those further, such as the
class token of DINOv2 with registers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

SIGN = "embeddings.patch_embeddings.projection.weight"
"""End of a name that every image model of transformers has."""
ROOTS = re.compile(r"^(vit|deit|dinov2|dinov2_with_registers|swin)\.")
IGNORED = re.compile(r"^pooler\.|^embeddings\.mask_token$|relative_position_index$|\.attn_mask$")
"""Parts that a timm classifier does not have."""
LAYER = r"^encoder\.layer\.(\d+)\."
STAGE_BLOCK = r"^encoder\.layers\.(\d+)\.blocks\.(\d+)\."
RULES: tuple[tuple[str, str], ...] = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (STAGE_BLOCK, r"layers.\1.blocks.\2."),
    (r"^encoder\.layers\.(\d+)\.downsample\.", r"layers.\1.downsample."),
    (LAYER, r"blocks.\1."),
    (r"\.attention\.(?:attention|self)\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.self\.relative_position_bias_table$", ".attn.relative_position_bias_table"),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
"""Patterns and replacements; each is applied to the result of those before it."""
PARTS = ("query", "key", "value")


def is_transformers(names: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the names are those of an image model of transformers."""
    return any(name.endswith(SIGN) for name in names)


def timm_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors under the names of timm, with query, key and value joined to `qkv`."""
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        bare = ROOTS.sub("", name)
        if not IGNORED.search(bare):
            renamed[_renamed(bare)] = tensor
    joined: dict[str, torch.Tensor] = {}
    for name, tensor in renamed.items():
        match = re.match(r"^(.*\.attn\.)(query|key|value)\.(weight|bias)$", name)
        if match is None:
            joined[name] = tensor
            continue
        start, _, kind = match.groups()
        parts = [renamed.get(f"{start}{part}.{kind}") for part in PARTS]
        joined[f"{start}qkv.{kind}"] = torch.cat([part for part in parts if part is not None])
    return joined


def _renamed(name: str) -> str:
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name
