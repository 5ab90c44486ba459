"""Networks that tell videos from texts, for encoders that learn to prevent it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from .options import Objective

# Weight of the gradient penalty, as of Gulrajani et al. (NeurIPS 2017).
PENALTY = 10.0


class Adversary(nn.Module):
    """One classifier a level. Of the options ``adversary`` says how it and the encoders work against each other.

    ``reversal`` (Ganin and Lempitsky, ICML 2015): one backward pass, the gradient reversed on its way into the
    encoders, by a factor that grows from 0 to ``adversary_weight`` over the run. The others step the classifiers by
    themselves, with ``own_loss``, before each step of the encoders.

    ``alternating`` (ACMR, Wang et al., ACM MM 2017): the encoders lower the loss that the classifiers would have with
    the two modalities exchanged (Goodfellow et al., NeurIPS 2014): minus the classifiers' own loss hardly slopes where
    they are sure, just where it should.

    ``wasserstein`` (Gulrajani et al., NeurIPS 2017): the classifiers estimate the distance between both distributions,
    and the encoders lower that.

    Args:
        dims: by level the length of the vectors.
    """

    def __init__(self, dims: dict[str, int], options: Objective) -> None:
        super().__init__()
        self.options = options
        hidden = options.adversary_hidden
        self.nets = nn.ModuleDict(
            {
                level: nn.Sequential(
                    nn.Linear(dim, hidden),
                    nn.LeakyReLU(0.2),
                    nn.Linear(hidden, hidden // 2),
                    nn.LeakyReLU(0.2),
                    nn.Linear(hidden // 2, 1),
                )
                for level, dim in dims.items()
            }
        )
        # Classifiers that step by themselves are left alone by the encoders' optimizer.
        self.requires_grad_(not self.steps_alone)

    @property
    def steps_alone(self) -> bool:
        """Whether the classifiers have an optimizer of their own."""
        return self.options.adversary in ("alternating", "wasserstein")

    def forward(self, videos: dict[str, Tensor], texts: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        """The encoders' term, weighted, and how often the classifiers are right.

        Args:
            videos, texts: (B, D) of length 1 by level.
            progress: the share of the run that is over.
        """
        weight = self.options.adversary_weight
        seen, said = self._judge(videos), self._judge(texts)
        right = torch.stack(
            [((seen[level] > 0).float().mean() + (said[level] <= 0).float().mean()) / 2 for level in seen]
        )
        terms = {"modality_accuracy": right.mean().detach()}
        if self.options.adversary == "reversal":
            factor = weight * (2 / (1 + math.exp(-10 * progress)) - 1)
            reverse = ({level: _Reverse.apply(x, factor) for level, x in side.items()} for side in (videos, texts))
            return {"loss_adversary": self._entropy(*(self._judge(side) for side in reverse))} | terms
        if self.options.adversary == "alternating":
            return {"loss_adversary": weight * self._entropy(said, seen)} | terms
        return {"loss_adversary": weight * self._distance(seen, said)} | terms

    def own_loss(self, videos: dict[str, Tensor], texts: dict[str, Tensor]) -> Tensor:
        """What the classifiers lower in a step of their own; arguments as of ``forward``, without gradient."""
        seen, said = self._judge(videos), self._judge(texts)
        if self.options.adversary == "alternating":
            return self._entropy(seen, said)
        loss = -self._distance(seen, said)
        for level, net in self.nets.items():
            # Its chance is its own: the encoders' dropout is that of a run without.
            with torch.random.fork_rng(devices=[videos[level].device] if videos[level].is_cuda else []):
                share = torch.rand(len(videos[level]), 1, device=videos[level].device)
            between = _scaled(share * videos[level] + (1 - share) * texts[level]).requires_grad_()
            (slope,) = torch.autograd.grad(net(between).sum(), between, create_graph=True)
            loss = loss + PENALTY * (slope.norm(dim=-1) - 1).square().mean() / len(self.nets)
        return loss

    def _judge(self, side: dict[str, Tensor]) -> dict[str, Tensor]:
        return {level: net(_scaled(side[level])).squeeze(-1).float() for level, net in self.nets.items()}

    @staticmethod
    def _entropy(seen: dict[str, Tensor], said: dict[str, Tensor]) -> Tensor:
        """Of the classifiers where ``seen`` are videos and ``said`` are texts: a mean over levels."""
        losses = []
        for level in seen:
            logits = torch.cat([seen[level], said[level]])
            truth = torch.cat([torch.ones_like(seen[level]), torch.zeros_like(said[level])])
            losses.append(2 * binary_cross_entropy_with_logits(logits, truth))
        return torch.stack(losses).mean()

    @staticmethod
    def _distance(seen: dict[str, Tensor], said: dict[str, Tensor]) -> Tensor:
        return torch.stack([seen[level].mean() - said[level].mean() for level in seen]).mean()


def _scaled(x: Tensor) -> Tensor:
    # The numbers of a vector of length 1 are small: a network that sees them as they are learns too slowly.
    return x * math.sqrt(x.shape[-1])


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * grad, None
