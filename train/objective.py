"""What training minimises: one matrix of which captions and clips belong together, and a sum of named, weighted terms.

Every term can be had with every model. A term changes nothing but its own gradient: without it, all else of a run is
as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .adversary import Adversary
from .config import ConfigError
from .exchange import gather
from .losses import contrastive, divergence, focal, hinge, mean_average_precision, mine
from .models import Embeddings, RetrievalModel
from .models.layers import unit
from .options import Objective as Options
from .options import Relation


class Objective(nn.Module):
    """The terms that the options name, with what these learn: temperatures, classifiers, heads for concepts.

    Args:
        options: the section ``objective`` of a configuration.
        model: whose levels and vectors the terms are of; it is not kept.
        concepts: how many concepts of each kind the captions have.

    Raises:
        ConfigError: if a term is of a level that the model does not know, or no term ranks.
    """

    def __init__(self, options: Options, model: RetrievalModel, concepts: Mapping[str, int]) -> None:
        super().__init__()
        self.options = options
        known = ("fused", "levels", *model.known_levels)
        for term in ("hinge", "contrastive"):
            for name in getattr(options, term):
                if name not in known:
                    raise ConfigError(
                        f"objective.{term}: {name!r} is no score of this model; it has {', '.join(known)}"
                    )
        self.hinge = _by_score(options.hinge, model)
        self.contrastive = _by_score(options.contrastive, model)
        if not (self.hinge or self.contrastive):
            raise ConfigError(
                "no term ranks captions and clips: give objective.hinge or objective.contrastive a weight"
            )
        start = torch.tensor(-math.log(options.temperature))
        self.log_scales = nn.ParameterDict({name: nn.Parameter(start.clone()) for name in self.contrastive})
        self.heads = nn.ModuleDict()
        if options.concepts and not model.concept_levels:
            dim = model.dims[model.whole]
            self.heads = nn.ModuleDict({kind: nn.Linear(dim, count) for kind, count in concepts.items() if count})
        self.adversary = Adversary(model.dims, options) if options.adversary != "off" else None

    def forward(
        self,
        model: RetrievalModel,
        videos: Embeddings,
        texts: Embeddings,
        batch: Mapping[str, Any],
        *,
        second: Embeddings | None = None,
        progress: float = 0.0,
    ) -> dict[str, Tensor]:
        """The terms by name, weighted, those to minimise with names that begin with ``loss``; and figures to log.

        Args:
            model: scores and pools embeddings.
            videos, texts: of this process's pairs.
            batch: ``clip``, ``caption``, ``own`` of this process's pairs, as of ``pair_matrix``; ``concepts`` with
                labels where they are taught.
            second: the videos from another draw of their rows, for ``denoise``.
            progress: the share of the run that is over.
        """
        options = self.options
        device = next(iter(videos.values())).device.type
        # Scores of neighbours differ by less than the two or three digits of bfloat16.
        with torch.autocast(device, enabled=False):
            positives, negatives = pair_matrix(batch, options.same_clip, options.same_caption)
            terms: dict[str, Tensor] = {}
            if second is not None:
                draws = [gather(unit(model.pooled(draw)[model.whole].detach())) for draw in (videos, second)]
                mined = mine(*draws, options.denoise, options.denoise_slack)
                # A clip's mined positives, and how many of them share a caption with it, or are the same clip.
                terms["mined"] = mined.sum(1).float().mean()
                terms["mined_related"] = (mined & ~negatives).sum(1).float().mean()
                positives, negatives = positives | mined, negatives & ~mined
            scores = model.level_scores(
                {name: gather(x) for name, x in videos.items()}, {name: gather(x) for name, x in texts.items()}
            )
            scores["fused"] = model.fuse(scores)
            for name, weight in self.hinge.items():
                rule = {"margin": options.margin, "which": options.negatives}
                terms[f"loss_hinge_{name}"] = weight * hinge(scores[name], positives, negatives, **rule)
            for name, weight in self.contrastive.items():
                logits = scores[name] * self.log_scales[name].exp().clamp(max=100)
                term = contrastive(logits, positives, negatives, several=options.several)
                terms[f"loss_contrastive_{name}"] = weight * term
            if options.divergence:
                terms["loss_divergence"] = options.divergence * self._divergence(model, videos, texts)
            if options.concepts:
                terms |= self._concepts(model, {"video": videos, "text": texts}, batch["concepts"])
            if self.adversary is not None:
                terms |= self.adversary(vectors(model, videos), vectors(model, texts), progress)
        return terms

    def _divergence(self, model: RetrievalModel, videos: Embeddings, texts: Embeddings) -> Tensor:
        """The sum over levels, of vectors or of concepts."""
        options = self.options
        if options.divergence_of == "concepts":
            sides = [
                {level: side[f"{level} concepts"].clamp(min=1e-6).log() for level in model.concept_levels}
                for side in (videos, texts)
            ]
        else:
            sides = [
                {level: x / options.divergence_temperature for level, x in model.pooled(side).items()}
                for side in (videos, texts)
            ]
        parts = [
            divergence(x, sides[1][level], symmetric=options.divergence_way == "symmetric")
            for level, x in sides[0].items()
        ]
        return torch.stack(parts).sum() if parts else next(iter(videos.values())).new_zeros(())

    def _concepts(
        self, model: RetrievalModel, sides: Mapping[str, Embeddings], labels: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The cross-entropy of each level and side, and how well each side knows the batch's concepts."""
        options, terms = self.options, {}
        for side, embeddings in sides.items():
            if model.concept_levels:
                chances = {
                    level: (kind, embeddings[f"{level} concepts"]) for level, kind in model.concept_levels.items()
                }
            else:
                whole = unit(model.pooled(embeddings)[model.whole]) * math.sqrt(model.dims[model.whole])
                chances = {kind: (kind, head(whole).sigmoid()) for kind, head in self.heads.items()}
            for level, (kind, chance) in chances.items():
                truth, mask = labels[kind]["truth"], labels[kind]["mask"]
                loss = focal(chance, truth, mask, focus=options.focus, balance=options.balance)
                terms[f"loss_{side}_{level}_concepts"] = options.concepts * loss
                terms[f"{side}_{level}_mAP"] = mean_average_precision(chance.detach(), truth, mask)
        return terms


def vectors(model: RetrievalModel, embeddings: Embeddings) -> dict[str, Tensor]:
    """(B, D) of length 1 by level: what an adversary sees of one side."""
    return {level: unit(x) for level, x in model.pooled(embeddings).items()}


def pair_matrix(batch: Mapping[str, Any], same_clip: Relation, same_caption: Relation) -> tuple[Tensor, Tensor]:
    """(B, B) bool, captions x clips over the pairs of all processes: the positives, and the negatives.

    A pair of the batch is always positive. Pairs of one clip are related by it; pairs of which the caption is also one
    of the other clip's, be it in this batch or not, by that caption.

    Args:
        batch: this process's. For each pair ``clip`` and ``caption``, (B,), numbers that are equal where clips or
            captions are; ``own``, (B, K), the numbers of all captions of the clip, -1 where there are fewer.
        same_clip, same_caption: what related pairs are: positive, negative, or excused, which is neither.
    """
    clip, caption, own = gather(batch["clip"]), gather(batch["caption"]), gather(batch["own"] + 1) - 1
    by_clip = clip.unsqueeze(0) == clip.unsqueeze(1)
    by_caption = torch.zeros_like(by_clip)
    for column in own.unbind(1):  # (B, B, K) at once would not fit for large batches
        by_caption |= caption.unsqueeze(1) == column.unsqueeze(0)
    by_caption &= ~by_clip
    positives = torch.eye(len(clip), dtype=torch.bool, device=clip.device)
    related = positives.clone()
    for pairs, relation in ((by_clip, same_clip), (by_caption, same_caption)):
        if relation != "negative":
            related |= pairs
        if relation == "positive":
            positives = positives | pairs
    return positives, ~related


def _by_score(weights: Mapping[str, float], model: RetrievalModel) -> dict[str, float]:
    """Weights by the name of a score that the model, as it is configured, has; zeros are left out.

    ``levels`` stands for each level, by its weight in the fused score.
    """
    by_score: dict[str, float] = {}
    for name, weight in weights.items():
        parts = model.level_weights if name == "levels" else {name: 1.0}
        for part, share in parts.items():
            if weight * share and part in ("fused", *model.levels):
                by_score[part] = by_score.get(part, 0.0) + weight * share
    return by_score
