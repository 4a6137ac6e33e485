"""A fixed batch size in place of the dynamic one."""

from __future__ import annotations

import onnx_ir as ir

from vitslim.recipe.formats.file_form import BATCH


def fix_batch(model: ir.Model, batch: int) -> None:
    """In place: bind the dynamic batch of a model.

    Runs before constant folding, which then computes every shape. Shapes that depend on the batch in another way than
    by its size are removed; the final inference computes them again.
    """
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        if value.shape is None or value.shape.is_static():
            continue
        sizes = [batch if str(size) == BATCH else size for size in value.shape]
        is_bound = all(isinstance(size, int) for size in sizes)
        value.shape = ir.Shape(sizes) if is_bound else None
