"""ReViT: vision transformers whose widths follow a rule that NViT found (Yang et al., CVPR 2023, section 5).

A ReViT has few heads and short queries and keys in its outer blocks, and twice as much in the middle ones. It is built
from a distilled DeiT of uniform width, whose axes are cut to the rule; its weights are random.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vitslim.errors import UsageError
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace.timm_model import trace_timm
from vitslim.recipe.schema import Model, Revit

BASE = "deit_small_distilled_patch16_224"
DEPTH = 12
MIDDLE = range(3, 9)
"""Blocks 4 to 9, counted from 1, whose widths are doubled."""
VALUE_DIM = 64


class BlockWidths(NamedTuple):
    """Widths of one block."""

    heads: int
    qk: int
    v: int
    mlp: int


def revit_blocks(embed: int, variant: str) -> tuple[BlockWidths, ...]:
    """Return the widths of the 12 blocks for an embedding width, by the rule of the paper or of the released script.

    paper: `H = eps * E / 100` to the nearest even number, `QK = eps * E / 20` to the nearest multiple of 8, V = 64 and
    `MLP = 3 * eps * E`, with eps = 2 in the middle blocks and 1 elsewhere. released: rounded before eps is applied,
    with ten heads and doubled QK in the first and the last block.
    """
    return tuple(_paper(embed, block) if variant == "paper" else _released(embed, block) for block in range(DEPTH))


def _paper(embed: int, block: int) -> BlockWidths:
    eps = 2 if block in MIDDLE else 1
    return BlockWidths(max(2, 2 * round(eps * embed / 200)), max(8, 8 * round(eps * embed / 160)), VALUE_DIM,
                       3 * eps * embed)  # fmt: skip


def _released(embed: int, block: int) -> BlockWidths:
    h, q = max(1, round(embed * 0.005)), max(1, round(embed * 0.05 / 8))
    is_middle, is_end = block in MIDDLE, block in {0, DEPTH - 1}
    heads = 10 if is_end else 4 * h if is_middle else 2 * h
    return BlockWidths(heads, 16 * q if is_middle or is_end else 8 * q, VALUE_DIM, (6 if is_middle else 3) * embed)


def revit_lengths(config: Revit) -> dict[str, int]:
    """Return the length of each axis by its name in the uniform model of `revit_kwargs`."""
    lengths = {"embed": config.embed}
    for number, block in enumerate(revit_blocks(config.embed, config.variant)):
        lengths |= {f"blocks.{number}.{kind}": value for kind, value in block._asdict().items()}
    return lengths


def revit_kwargs(config: Revit) -> dict[str, int | float]:
    """Return arguments of the uniform DeiT that is as wide as the widest block."""
    blocks = revit_blocks(config.embed, config.variant)
    heads = max(-(-config.embed // VALUE_DIM), *(block.heads for block in blocks))
    width = heads * VALUE_DIM
    # timm rounds mlp_ratio * width down; half a unit more keeps the product above the integer.
    return {"embed_dim": width, "num_heads": heads, "mlp_ratio": (max(block.mlp for block in blocks) + 0.5) / width}


def trace_model(model: Model, checkpoint: Path | None = None, seed: int = 0) -> ModelGraph:
    """Return the graph of the dense model of a recipe: a timm model, or a ReViT with random weights; see `trace_timm`.

    Raises UsageError for widths that the rule cannot give, and for arguments that would change them.
    """
    preprocessing = model.preprocessing.values()
    if model.revit is None:
        entry, task = model.checkpoint_entry, model.task
        return trace_timm(model.timm or "", dict(model.kwargs), checkpoint, seed, entry, task, preprocessing)
    kwargs = revit_kwargs(model.revit)
    for key in sorted({*kwargs, "depth", "qk_norm", "distilled"} & model.kwargs.keys()):
        raise UsageError(f"model.kwargs cannot hold '{key}' with `revit`: the rule sets it", f"remove '{key}'")
    uniform = trace_timm(BASE, {**model.kwargs, **kwargs}, None, seed, None, model.task, preprocessing)
    sizes = {axis.name: axis.size for axis in uniform.axes.axes}
    lengths = revit_lengths(model.revit)
    kept = {name: range(length) for name, length in lengths.items() if length < sizes[name]}
    return slice_axes(uniform, kept)
