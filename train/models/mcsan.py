"""MCSAN (Nian et al., Mathematics 2022), reconstructed: four levels, aligned by a divergence and by shared concepts.

The public abstract names global, entity, action and relationship levels on both sides, a KL divergence, an attribute
projection with shared parameters, and a focal cross-entropy for its labels. Their details follow HGR and HANet (Wu et
al., ACM MM 2021); docs/concepts/models.md gives the source of each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..options import MCSAN as Options
from ..options import Inputs
from ..rolegraphs import ROLES
from .base import Embeddings, RetrievalModel
from .layers import attention_heads, in_float32, masked_mean, unit
from .parts import phrase_scores
from .phrases import RoleGraphEncoder, masked_softmax
from .rows import Rows

# The levels, and the kind of concepts that each predicts.
LEVELS = {"global": "", "entity": "entity", "action": "action", "relationship": "relation"}


class MCSAN(RetrievalModel):
    """The MCSAN model; see the module."""

    known_levels = (*LEVELS, "features", "concepts")

    def __init__(self, options: Options, inputs: Inputs) -> None:
        super().__init__()
        self.options = options
        dim = options.dim
        self.rows = Rows(options, inputs, ("global", "entity", "action"))
        # No convolution over objects: their graph models their order in time.
        self.over_time = nn.ModuleDict(
            {name: nn.Conv1d(dim, dim, 5, padding=2) for name in options.streams if name not in inputs.objects}
        )
        self.attention = nn.Linear(dim, 1)
        self.relate = nn.MultiheadAttention(dim, attention_heads(dim), options.dropout, batch_first=True)
        self.relate_norm = nn.LayerNorm(dim)
        self.text = RoleGraphEncoder(options, inputs)
        # The node of a relationship is computed from the nodes of its words and, for a pair, its role.
        self.relation = nn.Linear((3 if options.relation == "triple" else 2) * dim, dim)
        self.relation_role = None
        if options.relation == "pair":
            self.relation_role = nn.Embedding(len(ROLES), dim)
            nn.init.normal_(self.relation_role.weight, std=0.02)
        self.attributes = nn.ModuleDict()
        if options.attributes != "off":
            for level in options.levels:
                count = inputs.concepts.get(LEVELS[level], 0)
                if count:
                    self.attributes[level] = Attributes(dim, count, options)
        self.concept_levels = {level: LEVELS[level] for level in self.attributes}
        self.level_weights = {"features": 1.0}
        if self.attributes and options.attribute_score:
            self.level_weights = {"features": 0.5, "concepts": 0.5}
        self.dims = dict.fromkeys(options.levels, dim)
        self.main_level = options.levels[0]

    @property
    def levels(self) -> tuple[str, ...]:
        return (*self.options.levels, "features", *(["concepts"] if self.attributes else []))

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """Return ``global`` (B, dim); ``entity``, ``action``, ``relationship`` (B, T, dim), and the ``mask`` of rows.

        With attributes, also the probabilities of concepts: ``entity concepts`` (B, concepts) etc.
        """
        return self._with_concepts({"video": self._video_levels(video)})["video"]

    def edge_weights(self, video: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        return self.rows.edge_weights(video)

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """Return ``global`` (B, dim); ``entity``, ``action``, ``relationship`` (B, P, dim), and the masks of phrases.

        With attributes, also the probabilities of concepts, as for videos.
        """
        return self._with_concepts({"text": self._text_levels(text)})["text"]

    def encode_pairs(self, batch: dict[str, Any]) -> tuple[Embeddings, Embeddings]:
        """Encode both sides together, so that a shared batch normalisation uses the statistics of both."""
        sides = {"video": self._video_levels(batch["video"]), "text": self._text_levels(batch["text"])}
        sides = self._with_concepts(sides)
        return sides["video"], sides["text"]

    def _video_levels(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        streams, masks = self.rows.streams(video)
        for name, convolution in self.over_time.items():
            x = streams["action"][name] * masks[name].unsqueeze(-1)
            streams["action"][name] = convolution(x.transpose(1, 2)).transpose(1, 2)
        mask = torch.cat(list(masks.values()), dim=1)
        rows = {level: torch.cat(list(x.values()), dim=1) for level, x in streams.items()}
        weights = masked_softmax(self.attention(rows["global"]).squeeze(-1), mask)
        levels = {"global": torch.einsum("bt,btd->bd", weights, rows["global"]), "mask": mask}
        levels |= {"entity": rows["entity"], "action": rows["action"]}
        if "relationship" in self.options.levels:
            both = torch.cat([rows["entity"], rows["action"]], dim=1)
            hidden = torch.cat([~mask & mask.any(1, keepdim=True)] * 2, dim=1)
            related, _ = self.relate(rows["action"], both, both, key_padding_mask=hidden, need_weights=False)
            levels["relationship"] = self.relate_norm(rows["action"] + related)
        return levels

    def _text_levels(self, text: dict[str, Tensor]) -> Embeddings:
        options = self.options
        present = text["nodes"].any(-1)
        relations, parts = text["relations"], 3 if options.relation == "triple" else 2
        has_relation = relations[..., 0] >= 0

        def related(nodes: Tensor) -> Tensor:
            places = relations[..., :parts].clamp(min=0)
            picked = nodes.gather(1, places.flatten(1).unsqueeze(-1).expand(-1, -1, nodes.shape[-1]))
            created = self.relation(picked.unflatten(1, places.shape[1:]).flatten(2))
            if self.relation_role is not None:
                created = created + self.relation_role(relations[..., 2].clamp(min=0))
            return created * has_relation.unsqueeze(-1)

        nodes = self.text(text, related)
        verbs, nouns = 1 + options.verbs, 1 + options.verbs + options.nouns
        levels = {"global": nodes[:, 0], "entity": nodes[:, verbs:nouns], "action": nodes[:, 1:verbs]}
        levels |= {"entity mask": present[:, verbs:nouns], "action mask": present[:, 1:verbs]}
        return levels | {"relationship": nodes[:, nouns:], "relationship mask": has_relation}

    def _with_concepts(self, sides: dict[str, Embeddings]) -> dict[str, Embeddings]:
        """Add the probabilities of concepts to the levels of each side."""
        for level, classify in self.attributes.items():
            probabilities = classify({side: self._pooled(levels, level) for side, levels in sides.items()})
            sides = {side: levels | {f"{level} concepts": probabilities[side]} for side, levels in sides.items()}
        return sides

    def pooled(self, embeddings: Embeddings) -> dict[str, Tensor]:
        return {level: self._pooled(embeddings, level) for level in self.options.levels}

    def _pooled(self, embeddings: Embeddings, level: str) -> Tensor:
        """Return one vector (B, dim) for a level of videos or captions."""
        if level == "global":
            return embeddings["global"]
        mask = embeddings["mask"] if "mask" in embeddings else embeddings[f"{level} mask"]
        return masked_mean(embeddings[level], mask)

    @in_float32
    def level_scores(self, videos: Embeddings, texts: Embeddings) -> dict[str, Tensor]:
        """Return (texts, videos) scores by level; 0 for captions without a phrase on a level.

        ``features`` is the mean of these levels, ``concepts`` the agreement of both sides' concepts.
        """
        scores = {}
        for level in self.options.levels:
            if level == "global":
                scores[level] = unit(texts[level]) @ unit(videos[level]).T
            else:
                phrases, mask = texts[level], texts[f"{level} mask"]
                scores[level] = phrase_scores(videos[level], videos["mask"], phrases, mask, self.options)
        scores["features"] = torch.stack(list(scores.values())).mean(0)
        if self.attributes:
            scores["concepts"] = self.attribute_score(videos, texts)
        return scores

    def attribute_score(self, videos: Embeddings, texts: Embeddings) -> Tensor:
        """Return (texts, videos): the sum of minima over the sum of maxima of both concepts, averaged over levels."""
        scores = []
        for level in self.attributes:
            video, text = videos[f"{level} concepts"], texts[f"{level} concepts"]
            # min + max = a + b and max - min = |a - b|: no (texts, videos, concepts) tensor is needed.
            total = text.sum(-1).unsqueeze(1) + video.sum(-1).unsqueeze(0)
            difference = torch.cdist(text, video, p=1)
            scores.append((total - difference) / (total + difference).clamp(min=1e-6))
        return torch.stack(scores).mean(0)


class Attributes(nn.Module):
    """Concept probabilities of a level; ``shared``: one projection for videos and texts, ``separate``: one for each."""

    def __init__(self, dim: int, count: int, options: Options) -> None:
        super().__init__()
        sides = ("both",) if options.attributes == "shared" else ("video", "text")
        self.project = nn.ModuleDict({side: nn.Linear(dim, count) for side in sides})
        norms = ("video", "text") if options.attribute_norm == "separate" else sides
        self.norm = nn.ModuleDict({side: nn.BatchNorm1d(count) for side in norms})

    def forward(self, sides: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map (B, dim) of ``video``, ``text`` or both to probabilities (B, concepts).

        A shared normalisation uses the statistics of both sides together.
        """
        projected = {side: self.project[side if side in self.project else "both"](x) for side, x in sides.items()}
        if "both" in self.norm:
            joined = self.norm["both"](torch.cat(list(projected.values())))
            parts = joined.split([len(x) for x in projected.values()])
            projected = dict(zip(projected, parts, strict=True))
        else:
            projected = {side: self.norm[side](x) for side, x in projected.items()}
        return {side: x.sigmoid() for side, x in projected.items()}
