"""Ranking and adversarial losses, and the negatives of all processes."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, pad, relu

from .options import Ranked, SameCaption

Negatives = Literal["hardest", "all"]
Adversarial = Literal["off", "reversal", "alternating"]


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; gradients flow back to each. ``x`` where there is one.

    Every process must hold equally many rows.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    return _Gather.apply(x)


def gather_all(embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
    """``gather`` for each of several tensors; where processes have sequences of different lengths, zeros fill them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return embeddings
    found = {}
    for name, x in embeddings.items():
        if x.ndim > 1:
            longest = torch.tensor(x.shape[1], device=x.device)
            torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
            x = pad(x, [0, 0] * (x.ndim - 2) + [0, int(longest) - x.shape[1]])
        found[name] = gather(x) if x.dtype != torch.bool else gather(x.to(torch.uint8)).bool()
    return found


class _Gather(torch.autograd.Function):
    """Backwards, a row's gradient is the sum of those it has in the losses of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        torch.distributed.all_reduce(grad)
        return grad.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def hinge(scores: Tensor, margin: float, negatives: Negatives, excused: Tensor | None = None) -> Tensor:
    """The bidirectional ranking loss of VSE++ (Faghri et al., BMVC 2018), a mean over the queries of the batch.

    Args:
        scores: (B, B), those of pairs that belong together on the diagonal.
        negatives: the hardest of a query's negatives counts, or the sum of all.
        excused: (B, B) bool: pairs off the diagonal that are no negatives, since they belong together too.
    """
    own = scores.diagonal()
    skip = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    if excused is not None:
        skip = skip | excused
    by_row = relu(margin + scores - own.unsqueeze(1)).masked_fill(skip, 0.0)
    by_column = relu(margin + scores - own.unsqueeze(0)).masked_fill(skip, 0.0)
    if negatives == "hardest":
        return by_row.amax(1).mean() + by_column.amax(0).mean()
    return by_row.sum(1).mean() + by_column.sum(0).mean()


def shared_pairs(batch: dict[str, Any], same_caption: SameCaption) -> Tensor:
    """(B, B) bool, over the pairs of all processes: those off the diagonal that are no negatives.

    ``ignored``: pairs of the same clip, and pairs with the same caption. ``negative``: none.

    Args:
        batch: this process's, with ``clip`` and ``caption``: for each pair numbers that are equal where the clips or
            the captions are.
    """
    clip, caption = gather(batch["clip"]), gather(batch["caption"])
    if same_caption == "negative":
        return torch.zeros(len(clip), len(clip), dtype=torch.bool, device=clip.device)
    shared = (clip.unsqueeze(0) == clip.unsqueeze(1)) | (caption.unsqueeze(0) == caption.unsqueeze(1))
    return shared.fill_diagonal_(False)


class Contrastive(nn.Module):
    """The symmetric cross-entropy of CLIP (Radford et al., ICML 2021) over a batch; its temperature is learned."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, scores: Tensor, excused: Tensor) -> Tensor:
        """Of (B, B) scores, those of pairs that belong together on the diagonal; ``excused`` as in ``hinge``."""
        own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        logits = (scores * self.scale.exp().clamp(max=100)).masked_fill(excused & ~own, -math.inf)
        truth = torch.arange(len(scores), device=scores.device)
        return (cross_entropy(logits, truth) + cross_entropy(logits.T, truth)) / 2


class Ranking(nn.Module):
    """The ranking loss that the options of a model ask for."""

    def __init__(self, options: Ranked) -> None:
        super().__init__()
        self.options = options
        self.contrast = Contrastive(options.temperature) if options.ranking == "contrastive" else None

    def forward(self, scores: Tensor, batch: dict[str, Any]) -> Tensor:
        """Of the scores of all processes' pairs.

        Args:
            batch: this process's, as of ``shared_pairs``.
        """
        excused = shared_pairs(batch, self.options.same_caption)
        if self.contrast is not None:
            return self.contrast(scores.float(), excused)
        return hinge(scores.float(), self.options.margin, self.options.negatives, excused)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * grad, None


class ModalityClassifier(nn.Module):
    """Tells videos from texts in each space; the encoders learn to prevent it.

    ``reversal`` (Ganin and Lempitsky, ICML 2015): one backward pass, the gradient reversed on its way into the
    encoders, by a factor that grows from 0 to ``weight`` over the run. ``alternating`` (ACMR, Wang et al., ACM MM
    2017): one step of the classifiers, by an optimizer of their own, before each step of the encoders. These then
    lower ``weight`` times the loss that the classifiers would have with the two modalities exchanged (Goodfellow et
    al., NeurIPS 2014): minus the classifiers' own loss hardly slopes where they are sure, just where it should.

    Args:
        spaces: one classifier for each.
        weight: lambda.
    """

    def __init__(
        self, spaces: list[str], dim: int, *, mode: Adversarial, weight: float, hidden: int, lr: float
    ) -> None:
        super().__init__()
        self.mode, self.weight, self.lr = mode, weight, lr
        self.nets = nn.ModuleDict(
            {
                space: nn.Sequential(
                    nn.Linear(dim, hidden),
                    nn.LeakyReLU(0.2),
                    nn.Linear(hidden, hidden // 2),
                    nn.LeakyReLU(0.2),
                    nn.Linear(hidden // 2, 1),
                )
                for space in spaces
            }
        )
        self.optimizer = None
        if mode == "alternating":
            self.requires_grad_(False)  # the encoders' optimizer, and the exchange of gradients, leave them alone
            self.optimizer = torch.optim.Adam(self.nets.parameters(), lr=lr, betas=(0.5, 0.999))

    def forward(self, videos: dict[str, Tensor], texts: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        """What to add to the loss, and how often the classifiers are right.

        Args:
            videos, texts: (B, dim) of each space, of this process alone.
            progress: the share of the run that is over.
        """
        if self.mode == "alternating":
            # Classifiers that went on at full rate while the encoders come to rest would leave them behind.
            self.optimizer.param_groups[0]["lr"] = self.lr * (1 - progress)
            self._step({k: v.detach() for k, v in videos.items()}, {k: v.detach() for k, v in texts.items()})
            fooled, wrong = self._entropy(texts, videos)
            return {"loss_adversarial": self.weight * fooled, "modality_accuracy": 1 - wrong}
        factor = self.weight * (2 / (1 + math.exp(-10 * progress)) - 1)
        reverse = {k: _Reverse.apply(v, factor) for k, v in videos.items()}
        entropy, right = self._entropy(reverse, {k: _Reverse.apply(v, factor) for k, v in texts.items()})
        return {"loss_adversarial": entropy, "modality_accuracy": right}

    def _entropy(self, videos: dict[str, Tensor], texts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        losses, right = [], []
        for space, net in self.nets.items():
            both = torch.cat([videos[space], texts[space]])
            # The numbers of a vector of length 1 are small: a network that sees them as they are learns too slowly.
            logits = net(both * math.sqrt(both.shape[-1])).squeeze(-1).float()
            truth = torch.cat([logits.new_ones(len(videos[space])), logits.new_zeros(len(texts[space]))])
            losses.append(2 * binary_cross_entropy_with_logits(logits, truth))
            right.append(((logits > 0) == (truth > 0)).float().mean())
        return torch.stack(losses).mean(), torch.stack(right).mean().detach()

    def _step(self, videos: dict[str, Tensor], texts: dict[str, Tensor]) -> None:
        assert self.optimizer is not None
        self.requires_grad_(True)
        with torch.enable_grad():
            entropy, _ = self._entropy(videos, texts)
            parameters = list(self.nets.parameters())
            for parameter, grad in zip(parameters, torch.autograd.grad(entropy, parameters), strict=True):
                if torch.distributed.is_available() and torch.distributed.is_initialized():
                    torch.distributed.all_reduce(grad)
                    grad /= torch.distributed.get_world_size()
                parameter.grad = grad
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.requires_grad_(False)
