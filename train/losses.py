"""Losses of scores and of embeddings: functions without weights of their own, and without side effects."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, relu

Negatives = Literal["hardest", "all"] | int


def hinge(scores: Tensor, positives: Tensor, negatives: Tensor, *, margin: float, which: Negatives) -> Tensor:
    """The bidirectional ranking loss of VSE++ (Faghri et al., BMVC 2018), a mean over the positive pairs.

    Args:
        scores: (captions, clips).
        positives, negatives: of that shape, bool, with no pair in both. Pairs in neither count neither way.
        which: of a query's negatives the hardest counts, the sum of all, or the mean over so many of the hardest.
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
    """The symmetric cross-entropy of CLIP (Radford et al., ICML 2021), with several positives where there are.

    Args:
        logits: (captions, clips).
        positives, negatives: as of ``hinge``; every caption and every clip has a positive.
        several: of a query's positives the ``mean`` of the log-probabilities, or the log of the ``sum`` of the
            probabilities.
    """
    total = logits.new_zeros(())
    for scores, own, others in ((logits, positives, negatives), (logits.T, positives.T, negatives.T)):
        chances = log_softmax(scores.masked_fill(~(own | others), -math.inf), dim=-1)
        if several == "mean":
            total = total - (chances.masked_fill(~own, 0.0).sum(-1) / own.sum(-1)).mean()
        else:
            total = total - chances.masked_fill(~own, -math.inf).logsumexp(-1).mean()
    return total / 2


def divergence(videos: Tensor, texts: Tensor, *, symmetric: bool) -> Tensor:
    """The Kullback-Leibler divergence between the two sides of each pair, a mean over the pairs.

    Args:
        videos, texts: (pairs, D) logits of distributions. A row of zeros in ``texts`` says nothing: its pair is left
            out.
        symmetric: the mean of both ways, instead of KL(video || text).
    """
    seen, said = log_softmax(videos.float(), dim=-1), log_softmax(texts.float(), dim=-1)
    each = kl_div(said, seen, log_target=True, reduction="none").sum(-1)
    if symmetric:
        each = (each + kl_div(seen, said, log_target=True, reduction="none").sum(-1)) / 2
    spoken = texts.detach().ne(0).any(-1).to(each.dtype)
    return (each * spoken).sum() / spoken.sum().clamp(min=1)


def focal(chance: Tensor, truth: Tensor, mask: Tensor, *, focus: float, balance: float) -> Tensor:
    """The focal binary cross-entropy (Lin et al., ICCV 2017): what is known already counts less.

    Args:
        chance, truth, mask: (B, concepts); masked concepts count neither way.
        focus: gamma; 0 is the plain cross-entropy.
        balance: alpha, the weight of concepts that are there; 1 - alpha that of the others.

    Returns:
        The mean over a pair's unmasked concepts, and over pairs.
    """
    chance = chance.float().clamp(1e-6, 1 - 1e-6)
    there = balance * truth * (1 - chance).pow(focus) * chance.log()
    absent = (1 - balance) * (1 - truth) * chance.pow(focus) * (1 - chance).log()
    return -((there + absent) * mask).sum(-1).div(mask.sum(-1).clamp(min=1)).mean()


def mean_average_precision(chance: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """The mean over concepts that some row has of their average precision, between 0 and 1; NaN if no row has any.

    Args:
        chance, truth, mask: (B, concepts), as of ``focal``.
    """
    counted = mask > 0
    order = chance.float().masked_fill(~counted, -1.0).argsort(dim=0, descending=True)
    hits = (truth * counted).gather(0, order)
    places = torch.arange(1, len(hits) + 1, device=hits.device).unsqueeze(1)
    precision = (hits.cumsum(0) / places * hits).sum(0)
    return (precision / hits.sum(0))[hits.sum(0) > 0].mean()


def mine(first: Tensor, second: Tensor, rule: str, slack: float = 0.0) -> Tensor:
    """(B, B) bool: other videos that are as near as a video's two draws of frames are to each other.

    Args:
        first, second: (B, D), of length 1.
        rule: a pair is mined if either of its videos finds the other so (``or``), or both (``and``).
        slack: how much less the cosine to another may be than that of a video's own draws.
    """
    views = torch.stack([first, second])
    between = torch.einsum("kid,ljd->ij", views, views) / 4
    found = between >= (first * second).sum(-1, keepdim=True) - slack
    found = found | found.T if rule == "or" else found & found.T
    return found & ~torch.eye(len(first), dtype=torch.bool, device=first.device)
