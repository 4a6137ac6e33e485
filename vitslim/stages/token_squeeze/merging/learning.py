"""Learning of the rates of DiffRate on calibration images, with frozen weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from vitslim.errors import StageError
from vitslim.graph.anatomy import Anatomy, Attention, find_anatomy
from vitslim.graph.anatomy.attention import find_attentions
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op
from vitslim.recipe.stages import DiffRate
from vitslim.stages.contract import StageContext
from vitslim.stages.token_squeeze.merging.rates import expected_rates, initial_logits, tilted
from vitslim.stages.token_squeeze.merging.simulation import (
    Boundary,
    Tokens,
    compress,
    token_score,
    weighed_attention,
)
from vitslim.training import LOSS, Batch, predict, train
from vitslim.training.tasks import task_for

aten = torch.ops.aten

BOUNDARY = 1 / 16
"""Tokens with random weights in training, as a fraction of the patch tokens."""

POOLING = (aten.mean.dim, aten.amax.default, aten.max.dim, aten.logsumexp.default)
"""Operators that may pool tokens; only the mean is simulated."""


class Rates(NamedTuple):
    """Rates of one block."""

    prune: float
    """Fraction of the patch tokens that is dropped."""
    merge: float
    """Fraction of the rest that is merged."""


MacsFraction = Callable[[Mapping[str, Any]], Any]
"""Maps the patch tokens after each block, numbers or scalar tensors, to a fraction of the MACs without squeezing."""


class Simulation(nn.Module):
    """A frozen model with tokens removed by weights, at learnable rates that meet a number of MACs.

    In training mode tokens at the boundary have random weights; in evaluation mode all weights are 0 or 1.
    """

    def __init__(
        self, graph: ModelGraph, initial: Mapping[str, Rates], macs: MacsFraction, target: float, config: DiffRate
    ) -> None:
        """initial: rates by block name, in graph order. macs of expected rates equals `target` from the first step."""
        super().__init__()
        copy = graph.copy()
        self.model = copy.module.requires_grad_(False)
        self._anatomy, self._macs, self._target = find_anatomy(copy), macs, target
        self._blocks, self._proportional = tuple(initial), config.proportional_attention
        block = self._anatomy.block(self._blocks[0])
        attention = block.attention if block else None
        self._patches = self._anatomy.shapes[attention.k][2] - self._anatomy.prefix_tokens if attention else 0
        logits = [initial_logits(rate, config.candidates) for rates in initial.values() for rate in rates]
        self.logits = nn.Parameter(torch.stack(logits))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        width = max(2, round(self._patches * BOUNDARY)) if self.training else 0
        rates = self._rates()
        pairs = {name: (rates[2 * place], rates[2 * place + 1]) for place, name in enumerate(self._blocks)}
        run = _WeighedRun(self.model, self._anatomy, pairs, width, self._proportional)
        logits: Tensor = run.run(images)
        return logits

    def learned(self) -> dict[str, Rates]:
        """Return the expected rates by block name."""
        rates = iter(self._rates().tolist())
        return {name: Rates(prune, merge) for name, prune, merge in zip(self._blocks, rates, rates, strict=True)}

    def _rates(self) -> Tensor:
        return expected_rates(tilted(self.logits, self._macs_of_rates, self._target))

    def _macs_of_rates(self, rates: Tensor) -> Tensor:
        left, found = rates.new_tensor(float(self._patches)), {}
        for place, name in enumerate(self._blocks):
            left = left * (1 - rates[2 * place]) * (1 - rates[2 * place + 1])
            found[name] = left
        fraction: Tensor = self._macs(found)
        return fraction


class _WeighedRun(Interpreter):
    """One run of a model whose attention weighs tokens, and that compresses them after some attention residuals."""

    def __init__(
        self,
        module: torch.fx.GraphModule,
        anatomy: Anatomy,
        rates: Mapping[str, tuple[Tensor, Tensor]],
        width: int,
        proportional: bool,
    ) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._anatomy, self._rates, self._width, self._proportional = anatomy, rates, width, proportional
        self._in_blocks = {block.attention.node for block in anatomy.blocks if block.attention}
        self._attentions = {attention.node: attention for attention in find_attentions(module.graph, anatomy.shapes)}
        self._residuals = {b.attention_residual: b.name for b in anatomy.blocks if b.name in rates}
        self._tokens: Tokens | None = None
        self._score = torch.empty(0)

    def run_node(self, n: Node) -> Any:
        """Run a node; attention and pooling are weighed, and tokens are compressed after the attention residual."""
        if n in self._attentions:
            return self._attend(self._attentions[n])
        if self._tokens is not None and is_op(n, *POOLING) and self._reduces_tokens(n):
            return self._pool(n, self._tokens.weights)
        result = super().run_node(n)
        if n not in self._residuals:
            return result
        before = self._tokens or self._all(result)
        first, second = torch.rand(2).tolist()
        boundary = Boundary(self._width, (first, second))
        self._tokens = compress(replace(before, x=result), self._score, *self._rates[self._residuals[n]], boundary)
        return self._tokens.x

    def _attend(self, attention: Attention) -> Tensor:
        q, k, v = (self.env[operand] for operand in (attention.q, attention.k, attention.v))
        ones = torch.ones(k.shape[0], k.shape[2], device=k.device)
        present, sizes = (self._tokens.weights, self._tokens.sizes) if self._tokens else (ones, ones)
        in_block = attention.node in self._in_blocks
        weights = present * sizes if self._proportional and in_block else present
        result, probabilities = weighed_attention(q, k, v, attention.scale, weights)
        if in_block:
            prefix, has_class_token = self._anatomy.prefix_tokens, self._anatomy.has_class_token
            self._score = token_score(probabilities, present, prefix, has_class_token)
        return result

    def _all(self, x: Tensor) -> Tokens:
        ones = torch.ones(x.shape[:2], device=x.device)
        return Tokens(x, ones, ones, ones.new_tensor(float(x.shape[1] - self._anatomy.prefix_tokens)))

    def _reduces_tokens(self, node: Node) -> bool:
        dims = argument(node, 1, "dim", [])
        return len(self._anatomy.shapes[argument(node, 0)]) == 3 and 1 in (dims if isinstance(dims, list) else [dims])

    def _pool(self, node: Node, weights: Tensor) -> Tensor:
        """Return the weighed mean over tokens; prefix tokens may have been left out before."""
        if not is_op(node, aten.mean.dim):
            raise StageError(f"diffrate cannot learn rates of a model that pools its tokens by {node.target}",
                             "use `method: tome`")  # fmt: skip
        x, keepdim = self.env[argument(node, 0)], bool(argument(node, 2, "keepdim", False))
        weights = weights[:, -x.shape[1] :].unsqueeze(-1)
        mean: Tensor = (x * weights).sum(dim=1, keepdim=keepdim) / weights.sum(dim=1, keepdim=keepdim)
        return mean


def learn_rates(
    graph: ModelGraph, config: DiffRate, initial: Mapping[str, Rates], macs: MacsFraction, context: StageContext
) -> tuple[dict[str, Rates], dict[str, float]]:
    """Return rates that keep the predictions of a model at `config.macs`, by block name, and metrics of training.

    initial: rates by block name, in graph order. The loss is the distance of the task, such as the KL divergence, from
    the outputs of the unchanged model on the calibration images. Raises StageError if it is not finite.
    """
    images, seed, progress = context.data.calibration.balanced(config.train.images), context.seed, context.progress
    dense, _ = predict(graph.module, images, config.train.batch, progress, "token-squeeze: predictions")
    task = task_for(graph.source)
    simulation = Simulation(graph, initial, macs, config.macs, config)

    def objective(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {LOSS: task.soft_loss(logits.float(), dense.to(logits.device)[batch.positions])}

    label, keep = "token-squeeze: rates", context.keep
    metrics = train(simulation, images, objective, config.train, seed, {}, progress, label=label, keep=keep)
    return simulation.learned(), metrics
