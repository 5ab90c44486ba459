"""The training objective: one matrix of matching pairs, and a weighted sum of named loss terms.

Every model accepts every term. A term changes only its own gradient: the other terms do not depend on it.
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
from .options import ObjectiveOptions, Relation


class Objective(nn.Module):
    """Loss terms selected by the options, with their learned parameters: temperatures, classifiers, concept heads.

    Args:
        options: the section ``objective`` of a configuration.
        model: the model whose levels and vectors the terms use; no reference to it is kept.
        concepts: number of concepts of each kind.

    Raises:
        ConfigError: if a term names a score that the model lacks, or if no term ranks captions and clips.
    """

    def __init__(self, options: ObjectiveOptions, model: RetrievalModel, concepts: Mapping[str, int]) -> None:
        super().__init__()
        self.options = options
        known = ("fused", "levels", *model.known_levels)
        for term in ("hinge", "contrastive"):
            for name in getattr(options, term):
                if name not in known:
                    raise ConfigError(f"objective.{term}: this model has no score {name!r}; it has {', '.join(known)}")
        self.hinge = _by_score(options.hinge, model)
        self.contrastive = _by_score(options.contrastive, model)
        if not (self.hinge or self.contrastive):
            raise ConfigError(
                "no term ranks captions and clips: set the weight of objective.hinge or objective.contrastive"
            )
        start = torch.tensor(-math.log(options.temperature))
        self.log_scales = nn.ParameterDict({name: nn.Parameter(start.clone()) for name in self.contrastive})
        self.heads = nn.ModuleDict()
        if options.concepts and not model.concept_levels:
            dim = model.dims[model.main_level]
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
        """Compute the weighted terms by name. Losses have names that begin with ``loss``; other entries are logged.

        Args:
            model: scores and pools embeddings.
            videos, texts: embeddings of this process's pairs.
            batch: ``clip``, ``caption`` and ``own`` of this process's pairs, see ``pair_matrix``; ``concepts``, the
                labels of concepts if they are taught.
            second: embeddings of the videos from another draw of their rows, for ``denoise``.
            progress: completed share of the run.
        """
        options = self.options
        device = next(iter(videos.values())).device.type
        # Neighbouring scores differ by less than the two or three digits of bfloat16.
        with torch.autocast(device, enabled=False):
            positives, negatives = pair_matrix(batch, options.same_clip, options.same_caption)
            terms: dict[str, Tensor] = {}
            if second is not None:
                draws = [gather(unit(model.pooled(draw)[model.main_level].detach())) for draw in (videos, second)]
                mined = mine(*draws, options.denoise, options.denoise_slack)
                # Mined positives of a clip, and how many of them were related already (same clip or shared caption).
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
        """Sum the divergence of vectors or of concepts over levels."""
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
        """Compute the concept loss and the mAP in the batch, for each level and side."""
        options, terms = self.options, {}
        for side, embeddings in sides.items():
            if model.concept_levels:
                chances = {
                    level: (kind, embeddings[f"{level} concepts"]) for level, kind in model.concept_levels.items()
                }
            else:
                pooled = unit(model.pooled(embeddings)[model.main_level]) * math.sqrt(model.dims[model.main_level])
                chances = {kind: (kind, head(pooled).sigmoid()) for kind, head in self.heads.items()}
            for level, (kind, chance) in chances.items():
                truth, mask = labels[kind]["truth"], labels[kind]["mask"]
                loss = focal(chance, truth, mask, focus=options.focus, balance=options.balance)
                terms[f"loss_{side}_{level}_concepts"] = options.concepts * loss
                terms[f"{side}_{level}_mAP"] = mean_average_precision(chance.detach(), truth, mask)
        return terms


def vectors(model: RetrievalModel, embeddings: Embeddings) -> dict[str, Tensor]:
    """Return unit vectors (B, D) by level, the input of the adversary."""
    return {level: unit(x) for level, x in model.pooled(embeddings).items()}


def pair_matrix(batch: Mapping[str, Any], same_clip: Relation, same_caption: Relation) -> tuple[Tensor, Tensor]:
    """Return the positives and the negatives over the pairs of all processes: (B, B) bool, captions x clips.

    The pairs of the batch are positive. Two pairs are related by clip if they have the same clip, and by caption if
    the caption of one is also a caption of the other's clip, even if the batch does not contain that pair.

    Args:
        batch: the batch of this process. For each pair, ``clip`` and ``caption``, (B,), numbers that are equal for
            equal clips or captions; ``own``, (B, K), the numbers of all captions of the clip, padded with -1.
        same_clip, same_caption: how related pairs count: positive, negative, or excused (neither).
    """
    clip, caption, own = gather(batch["clip"]), gather(batch["caption"]), gather(batch["own"] + 1) - 1
    by_clip = clip.unsqueeze(0) == clip.unsqueeze(1)
    by_caption = torch.zeros_like(by_clip)
    for column in own.unbind(1):  # (B, B, K) at once needs too much memory for large batches
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
    """Return the non-zero weights by score, for the scores of the model as configured.

    ``levels`` expands to each level, multiplied by its weight in the fused score.
    """
    by_score: dict[str, float] = {}
    for name, weight in weights.items():
        parts = model.level_weights if name == "levels" else {name: 1.0}
        for part, share in parts.items():
            if weight * share and part in ("fused", *model.levels):
                by_score[part] = by_score.get(part, 0.0) + weight * share
    return by_score
