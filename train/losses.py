"""Loss functions of scores and embeddings, without parameters and without side effects."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, relu

Negatives = Literal["hardest", "all"] | int


def hinge(scores: Tensor, positives: Tensor, negatives: Tensor, *, margin: float, which: Negatives) -> Tensor:
    """Bidirectional ranking loss of VSE++ (Faghri et al., BMVC 2018), averaged over the positive pairs.

    Args:
        scores: (captions, clips).
        positives, negatives: bool masks of the same shape, disjoint. Pairs in neither mask are ignored.
        which: ``hardest`` uses the hardest negative of a query, ``all`` sums over all, N averages the N hardest.
    """
    caption, clip = positives.nonzero(as_tuple=True)
    own = scores[caption, clip].unsqueeze(1)
    total = scores.new_zeros(())
    for others, eligible in ((scores[caption], negatives[caption]), (scores.T[clip], negatives.T[clip])):
        costs = relu(margin + others - own).masked_fill(~eligible, 0.0)
        if which == "all":
            costs = costs.sum(1)
        else:
            most = 1 if which == "hardest" else min(which, costs.shape[1])
            costs = costs.topk(most, dim=1).values.mean(1)
        total = total + costs.mean()
    return total


def contrastive(logits: Tensor, positives: Tensor, negatives: Tensor, *, several: str) -> Tensor:
    """Symmetric cross-entropy of CLIP (Radford et al., ICML 2021), extended to several positives.

    Args:
        logits: (captions, clips).
        positives, negatives: masks as in ``hinge``; every caption and every clip has a positive.
        several: combine the positives of a query by the ``mean`` of their log-probabilities, or by the log of the
            ``sum`` of their probabilities.
    """
    total = logits.new_zeros(())
    for scores, own, others in ((logits, positives, negatives), (logits.T, positives.T, negatives.T)):
        log_probs = log_softmax(scores.masked_fill(~(own | others), -math.inf), dim=-1)
        if several == "mean":
            total = total - (log_probs.masked_fill(~own, 0.0).sum(-1) / own.sum(-1)).mean()
        else:
            total = total - log_probs.masked_fill(~own, -math.inf).logsumexp(-1).mean()
    return total / 2


def divergence(videos: Tensor, texts: Tensor, *, symmetric: bool) -> Tensor:
    """Kullback-Leibler divergence between the two sides of each pair, averaged over pairs.

    Args:
        videos, texts: (pairs, D) logits. A pair whose text is all zeros is ignored.
        symmetric: average both directions, instead of KL(video || text).
    """
    video_logs, text_logs = log_softmax(videos.float(), dim=-1), log_softmax(texts.float(), dim=-1)
    each = kl_div(text_logs, video_logs, log_target=True, reduction="none").sum(-1)
    if symmetric:
        each = (each + kl_div(video_logs, text_logs, log_target=True, reduction="none").sum(-1)) / 2
    has_text = texts.detach().ne(0).any(-1).to(each.dtype)
    return (each * has_text).sum() / has_text.sum().clamp(min=1)


def focal(chance: Tensor, truth: Tensor, mask: Tensor, *, focus: float, balance: float) -> Tensor:
    """Focal binary cross-entropy (Lin et al., ICCV 2017), which gives confident predictions a lower weight.

    Args:
        chance, truth, mask: (B, concepts) predicted probabilities, labels, and 0 for concepts to ignore.
        focus: gamma; 0 is plain cross-entropy.
        balance: alpha, the weight of present concepts; absent concepts have 1 - alpha.

    Returns:
        The mean over the unmasked concepts of a pair, then over pairs.
    """
    chance = chance.float().clamp(1e-6, 1 - 1e-6)
    present = balance * truth * (1 - chance).pow(focus) * chance.log()
    absent = (1 - balance) * (1 - truth) * chance.pow(focus) * (1 - chance).log()
    return -((present + absent) * mask).sum(-1).div(mask.sum(-1).clamp(min=1)).mean()


def mean_average_precision(chance: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Average precision, 0 to 1, averaged over the concepts that occur in some row; NaN if none occurs.

    Args:
        chance, truth, mask: (B, concepts), as in ``focal``.
    """
    counted = mask > 0
    order = chance.float().masked_fill(~counted, -1.0).argsort(dim=0, descending=True)
    hits = (truth * counted).gather(0, order)
    places = torch.arange(1, len(hits) + 1, device=hits.device).unsqueeze(1)
    precision = (hits.cumsum(0) / places * hits).sum(0)
    return (precision / hits.sum(0))[hits.sum(0) > 0].mean()


def mine(first: Tensor, second: Tensor, rule: str, slack: float = 0.0) -> Tensor:
    """Return (B, B) bool: pairs of different videos that are as close as a video's own two draws of frames.

    Args:
        first, second: (B, D) unit vectors of the two draws.
        rule: mine a pair if either of its videos finds the other close (``or``), or if both do (``and``).
        slack: by how much the cosine of a pair may be lower than that of a video's own draws.
    """
    views = torch.stack([first, second])
    between = torch.einsum("kid,ljd->ij", views, views) / 4
    close = between >= (first * second).sum(-1, keepdim=True) - slack
    close = close | close.T if rule == "or" else close & close.T
    return close & ~torch.eye(len(first), dtype=torch.bool, device=first.device)
