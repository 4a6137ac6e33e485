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
from vitslim.stages.token_squeeze.merging.rates import expected_rate, initial_logits
from vitslim.stages.token_squeeze.merging.simulation import Tokens, compress, masked_attention, token_score
from vitslim.training import LOSS, Batch, predict, soft_loss, train

aten = torch.ops.aten

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
    """A frozen model in which tokens are masked at learnable rates; gives logits and the expected fraction of MACs."""

    def __init__(
        self, graph: ModelGraph, rates: Mapping[str, Rates], candidates: int, proportional: bool, macs: MacsFraction
    ) -> None:
        """rates: initial rates by block name, in graph order."""
        super().__init__()
        copy = graph.copy()
        self.model = copy.module.requires_grad_(False)
        self._anatomy, self._proportional, self._macs = find_anatomy(copy), proportional, macs
        self._blocks = tuple(rates)
        self.prune = nn.ParameterList(initial_logits(rate.prune, candidates) for rate in rates.values())
        self.merge = nn.ParameterList(initial_logits(rate.merge, candidates) for rate in rates.values())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, classes) and the fraction of MACs, a scalar."""
        logits = dict(zip(self._blocks, zip(self.prune, self.merge, strict=True), strict=True))
        run = _MaskedRun(self.model, self._anatomy, logits, self._proportional)
        return run.run(images), self._macs(self._expected_tokens())

    def learned(self) -> dict[str, Rates]:
        """Return the expected rates by block name."""
        with torch.no_grad():
            pairs = zip(self._blocks, self.prune, self.merge, strict=True)
            return {name: Rates(float(expected_rate(p)), float(expected_rate(m))) for name, p, m in pairs}

    def _expected_tokens(self) -> dict[str, Tensor]:
        block = self._anatomy.block(self._blocks[0])
        patches = _patches(self._anatomy, block.attention) if block and block.attention else 0
        left, found = torch.tensor(float(patches), device=self.prune[0].device), {}
        for name, prune, merge in zip(self._blocks, self.prune, self.merge, strict=True):
            left = left * (1 - expected_rate(prune)) * (1 - expected_rate(merge))
            found[name] = left
        return found


class _MaskedRun(Interpreter):
    """One run of a model in which the attention of squeezed and later blocks sees only visible tokens."""

    def __init__(
        self,
        module: torch.fx.GraphModule,
        anatomy: Anatomy,
        logits: Mapping[str, tuple[Tensor, Tensor]],
        proportional: bool,
    ) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._anatomy, self._logits, self._proportional = anatomy, logits, proportional
        self._in_blocks = {block.attention.node for block in anatomy.blocks if block.attention}
        self._attentions = {attention.node: attention for attention in find_attentions(module.graph, anatomy.shapes)}
        self._residuals = {b.attention_residual: b.name for b in anatomy.blocks if b.name in logits}
        self._tokens: Tokens | None = None
        self._score = torch.empty(0)

    def run_node(self, n: Node) -> Any:
        """Run a node; attention and pooling are masked, and tokens are compressed after the attention residual."""
        if n in self._attentions:
            return self._attend(self._attentions[n])
        if self._tokens is not None and is_op(n, *POOLING) and self._reduces_tokens(n):
            return self._pool(n, self._tokens.mask)
        result = super().run_node(n)
        if n not in self._residuals:
            return result
        before = self._tokens or self._all(result)
        prune, merge = self._logits[self._residuals[n]]
        self._tokens = compress(replace(before, x=result), self._score, prune, merge)
        return self._tokens.x

    def _attend(self, attention: Attention) -> Tensor:
        q, k, v = (self.env[operand] for operand in (attention.q, attention.k, attention.v))
        ones = torch.ones(k.shape[0], k.shape[2], device=k.device)
        mask, sizes = (self._tokens.mask, self._tokens.sizes) if self._tokens else (ones, ones)
        in_block = attention.node in self._in_blocks
        weights = mask * sizes if self._proportional and in_block else mask
        result, probabilities = masked_attention(q, k, v, attention.scale, weights)
        if in_block:
            self._score = token_score(probabilities, mask, self._anatomy.prefix_tokens, self._anatomy.has_class_token)
        return result

    def _all(self, x: Tensor) -> Tokens:
        ones = torch.ones(x.shape[:2], device=x.device)
        return Tokens(x, ones, ones, x.shape[1] - self._anatomy.prefix_tokens)

    def _reduces_tokens(self, node: Node) -> bool:
        dims = argument(node, 1, "dim", [])
        return len(self._anatomy.shapes[argument(node, 0)]) == 3 and 1 in (dims if isinstance(dims, list) else [dims])

    def _pool(self, node: Node, mask: Tensor) -> Tensor:
        """Return the mean over visible tokens; prefix tokens may have been left out before."""
        if not is_op(node, aten.mean.dim):
            raise StageError(f"diffrate cannot learn rates of a model that pools its tokens by {node.target}",
                             "use `method: tome`")  # fmt: skip
        x, keepdim = self.env[argument(node, 0)], bool(argument(node, 2, "keepdim", False))
        weights = mask[:, -x.shape[1] :].unsqueeze(-1)
        mean: Tensor = (x * weights).sum(dim=1, keepdim=keepdim) / weights.sum(dim=1, keepdim=keepdim)
        return mean


def learn_rates(
    graph: ModelGraph, config: DiffRate, initial: Mapping[str, Rates], macs: MacsFraction, context: StageContext
) -> tuple[dict[str, Rates], dict[str, float]]:
    """Return rates that keep the predictions of a model at a number of MACs, by block name, and metrics of training.

    initial: rates by block name, in graph order. The loss is the KL divergence from the predictions of the unchanged
    model, plus `config.macs_weight` times the squared distance of the fraction of MACs from `config.macs`.
    """
    images, seed, progress = context.data.calibration.balanced(config.train.images), context.seed, context.progress
    dense, _ = predict(graph.module, images, config.train.batch, progress, "token-squeeze: predictions")
    simulation = Simulation(graph, initial, config.candidates, config.proportional_attention, macs)

    def objective(output: tuple[Tensor, Tensor], batch: Batch) -> dict[str, Tensor]:
        logits, fraction = output
        divergence = soft_loss(logits.float(), dense.to(logits.device)[batch.positions])
        distance = (fraction - config.macs).square()
        return {LOSS: divergence + config.macs_weight * distance, "kl": divergence, "macs": fraction}

    label, keep = "token-squeeze: rates", context.keep
    metrics = train(simulation, images, objective, config.train, seed, {}, progress, label=label, keep=keep)
    return simulation.learned(), metrics


def _patches(anatomy: Anatomy, attention: Attention) -> int:
    return anatomy.shapes[attention.q][2] - anatomy.prefix_tokens
