"""The report of a run shows the tokens of its final model on validation images."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitslim.data import load_data
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.token_trace import trace_tokens
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.run.token_pictures import token_pictures
from vitslim.recipe.schema import Data


@pytest.fixture
def gray_graph(tiny_kwargs: dict[str, Any]) -> ModelGraph:
    return trace_timm("vit_tiny_patch16_224", {**tiny_kwargs, "in_chans": 1})


def test_pictures_show_validation_images_of_different_classes(gray_graph: ModelGraph) -> None:
    squeezed = insert_squeeze(gray_graph, {"blocks.0": 7, "blocks.1": 3})
    val = load_data(Data(kind="digits"), gray_graph.source, seed=0).val
    weights = {name: tensor.clone() for name, tensor in squeezed.module.state_dict().items()}
    random_state = torch.get_rng_state()
    found = token_pictures(squeezed, val, seed=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(weights[name], tensor) for name, tensor in squeezed.module.state_dict().items())
    assert len(found) == len({picture.label for picture in found}) == 4
    samples = val.balanced(4, 0)
    images = torch.stack([samples[position][0] for position in range(4)])
    trace = trace_tokens(squeezed, images)
    assert trace is not None
    for position, picture in enumerate(found):
        assert (picture.rows, picture.columns) == (4, 4)
        assert [block.block for block in picture.blocks] == ["blocks.0", "blocks.1"]
        assert [block.kept for block in picture.blocks] == [step.kept for step in trace.images[position]]
        assert picture.label == val.class_names[samples.labels[position]]
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.image))), dtype=np.float32) / 255
        assert np.abs(shown - samples.pixels(position)[0].numpy()).max() < 0.003


def test_the_choice_of_images_depends_on_the_seed(gray_graph: ModelGraph) -> None:
    squeezed = insert_squeeze(gray_graph, {"blocks.0": 7})
    val = load_data(Data(kind="digits"), gray_graph.source, seed=0).val
    first, again, other = (token_pictures(squeezed, val, seed) for seed in (0, 0, 1))
    assert first == again
    assert [picture.image for picture in first] != [picture.image for picture in other]


def test_a_model_that_keeps_all_tokens_has_no_picture(gray_graph: ModelGraph) -> None:
    val = load_data(Data(kind="digits"), gray_graph.source, seed=0).val
    assert token_pictures(gray_graph, val, seed=0) == ()
