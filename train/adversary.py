"""Modality discriminators, trained against the encoders so that videos and texts become indistinguishable."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from .options import ObjectiveOptions

# Weight of the gradient penalty, from Gulrajani et al. (NeurIPS 2017).
PENALTY = 10.0


class Adversary(nn.Module):
    """One discriminator per level; the option ``adversary`` selects how encoders and discriminators compete.

    ``reversal`` (Ganin and Lempitsky, ICML 2015): one backward pass. The gradient is reversed before the encoders, by
    a factor that grows from 0 to ``adversary_weight`` over the run. The other variants update the discriminators with
    ``own_loss`` before each step of the encoders.

    ``alternating`` (ACMR, Wang et al., ACM MM 2017): the encoders minimise the discriminators' loss with exchanged
    modalities (Goodfellow et al., NeurIPS 2014). The negated loss has almost no gradient where the discriminators are
    confident, which is where the encoders need it.

    ``wasserstein`` (Gulrajani et al., NeurIPS 2017): the discriminators estimate the distance between the two
    distributions, and the encoders minimise it.

    Args:
        dims: dimension of the vectors by level.
    """

    def __init__(self, dims: dict[str, int], options: ObjectiveOptions) -> None:
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
        # The encoders' optimizer must skip discriminators that have their own step.
        self.requires_grad_(not self.has_own_step)

    @property
    def has_own_step(self) -> bool:
        """Whether the discriminators have their own optimizer."""
        return self.options.adversary in ("alternating", "wasserstein")

    def forward(self, videos: dict[str, Tensor], texts: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        """Return the encoders' weighted term, and the accuracy of the discriminators.

        Args:
            videos, texts: unit vectors (B, D) by level.
            progress: completed share of the run.
        """
        weight = self.options.adversary_weight
        video_logits, text_logits = self._logits(videos), self._logits(texts)
        right = torch.stack(
            [
                ((video_logits[level] > 0).float().mean() + (text_logits[level] <= 0).float().mean()) / 2
                for level in video_logits
            ]
        )
        terms = {"modality_accuracy": right.mean().detach()}
        if self.options.adversary == "reversal":
            factor = weight * (2 / (1 + math.exp(-10 * progress)) - 1)
            reverse = ({level: _Reverse.apply(x, factor) for level, x in side.items()} for side in (videos, texts))
            return {"loss_adversary": self._entropy(*(self._logits(side) for side in reverse))} | terms
        if self.options.adversary == "alternating":
            return {"loss_adversary": weight * self._entropy(text_logits, video_logits)} | terms
        return {"loss_adversary": weight * self._distance(video_logits, text_logits)} | terms

    def own_loss(self, videos: dict[str, Tensor], texts: dict[str, Tensor]) -> Tensor:
        """Return the loss of the discriminators' own step; arguments as in ``forward``, without gradient."""
        video_logits, text_logits = self._logits(videos), self._logits(texts)
        if self.options.adversary == "alternating":
            return self._entropy(video_logits, text_logits)
        loss = -self._distance(video_logits, text_logits)
        for level, net in self.nets.items():
            # Separate random numbers, so that the encoders' dropout equals that of a run without adversary.
            with torch.random.fork_rng(devices=[videos[level].device] if videos[level].is_cuda else []):
                share = torch.rand(len(videos[level]), 1, device=videos[level].device)
            between = _scaled(share * videos[level] + (1 - share) * texts[level]).requires_grad_()
            (slope,) = torch.autograd.grad(net(between).sum(), between, create_graph=True)
            loss = loss + PENALTY * (slope.norm(dim=-1) - 1).square().mean() / len(self.nets)
        return loss

    def _logits(self, side: dict[str, Tensor]) -> dict[str, Tensor]:
        return {level: net(_scaled(side[level])).squeeze(-1).float() for level, net in self.nets.items()}

    @staticmethod
    def _entropy(video_logits: dict[str, Tensor], text_logits: dict[str, Tensor]) -> Tensor:
        """Mean over levels of the discriminators' cross-entropy."""
        losses = []
        for level in video_logits:
            logits = torch.cat([video_logits[level], text_logits[level]])
            truth = torch.cat([torch.ones_like(video_logits[level]), torch.zeros_like(text_logits[level])])
            losses.append(2 * binary_cross_entropy_with_logits(logits, truth))
        return torch.stack(losses).mean()

    @staticmethod
    def _distance(video_logits: dict[str, Tensor], text_logits: dict[str, Tensor]) -> Tensor:
        return torch.stack([video_logits[level].mean() - text_logits[level].mean() for level in video_logits]).mean()


def _scaled(x: Tensor) -> Tensor:
    # The components of a unit vector are small; a network on unscaled inputs learns too slowly.
    return x * math.sqrt(x.shape[-1])


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * grad, None
