"""MCSAN (Nian et al., Mathematics 2022), reconstructed: four levels, aligned by divergence and by shared attributes.

Of the paper the abstract is public: global, entity, action and relationship levels on both sides, a KL divergence, an
attribute projection whose parameters both sides share, and a focal cross-entropy for its labels. Their form follows HGR
and HANet (Wu et al., ACM MM 2021); docs/models.md says what is from where.
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

# Levels with the kind of concept that each is taught.
LEVELS = {"global": "", "entity": "entity", "action": "action", "relationship": "relation"}


class MCSAN(RetrievalModel):
    """See the module."""

    known_levels = (*LEVELS, "features", "concepts")

    def __init__(self, options: Options, inputs: Inputs) -> None:
        super().__init__()
        self.options = options
        dim = options.dim
        self.rows = Rows(options, inputs, ("global", "entity", "action"))
        # Objects have their own order in time, in their graph: over them there is nothing to convolve.
        self.over_time = nn.ModuleDict(
            {name: nn.Conv1d(dim, dim, 5, padding=2) for name in options.streams if name not in inputs.objects}
        )
        self.attention = nn.Linear(dim, 1)
        self.relate = nn.MultiheadAttention(dim, attention_heads(dim), options.dropout, batch_first=True)
        self.relate_norm = nn.LayerNorm(dim)
        self.text = RoleGraphEncoder(options, inputs)
        # A relationship's node is made of its words' nodes and, for a pair, its role.
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
        self.whole = options.levels[0]

    @property
    def levels(self) -> tuple[str, ...]:
        return (*self.options.levels, "features", *(["concepts"] if self.attributes else []))

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """``global`` (B, dim); ``entity``, ``action``, ``relationship`` (B, T, dim), the ``mask`` of their rows.

        With attributes also how likely each concept is, by level: ``entity concepts`` (B, concepts) and so on.
        """
        return self._with_concepts({"video": self._video_levels(video)})["video"]

    def edge_weights(self, video: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        return self.rows.edge_weights(video)

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """``global`` (B, dim); ``entity``, ``action``, ``relationship`` (B, P, dim) and the masks of their phrases.

        With attributes also concepts as of videos.
        """
        return self._with_concepts({"text": self._text_levels(text)})["text"]

    def encode_pairs(self, batch: dict[str, Any]) -> tuple[Embeddings, Embeddings]:
        """Both sides at once: a batch normalisation that they share has the statistics of both together."""
        sides = {"video": self._video_levels(batch["video"]), "text": self._text_levels(batch["text"])}
        sides = self._with_concepts(sides)
        return sides["video"], sides["text"]

    def _video_levels(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        streams, masks = self.rows.streams(video)
        for name, convolution in self.over_time.items():
            x = streams["action"][name] * masks[name].unsqueeze(-1)
            streams["action"][name] = convolution(x.transpose(1, 2)).transpose(1, 2)
        mask = torch.cat(list(masks.values()), dim=1)
        seen = {level: torch.cat(list(x.values()), dim=1) for level, x in streams.items()}
        weights = masked_softmax(self.attention(seen["global"]).squeeze(-1), mask)
        found = {"global": torch.einsum("bt,btd->bd", weights, seen["global"]), "mask": mask}
        found |= {"entity": seen["entity"], "action": seen["action"]}
        if "relationship" in self.options.levels:
            both = torch.cat([seen["entity"], seen["action"]], dim=1)
            hidden = torch.cat([~mask & mask.any(1, keepdim=True)] * 2, dim=1)
            related, _ = self.relate(seen["action"], both, both, key_padding_mask=hidden, need_weights=False)
            found["relationship"] = self.relate_norm(seen["action"] + related)
        return found

    def _text_levels(self, text: dict[str, Tensor]) -> Embeddings:
        options = self.options
        there = text["nodes"].any(-1)
        relations, parts = text["relations"], 3 if options.relation == "triple" else 2
        known = relations[..., 0] >= 0

        def related(nodes: Tensor) -> Tensor:
            places = relations[..., :parts].clamp(min=0)
            picked = nodes.gather(1, places.flatten(1).unsqueeze(-1).expand(-1, -1, nodes.shape[-1]))
            made = self.relation(picked.unflatten(1, places.shape[1:]).flatten(2))
            if self.relation_role is not None:
                made = made + self.relation_role(relations[..., 2].clamp(min=0))
            return made * known.unsqueeze(-1)

        nodes = self.text(text, related)
        verbs, nouns = 1 + options.verbs, 1 + options.verbs + options.nouns
        found = {"global": nodes[:, 0], "entity": nodes[:, verbs:nouns], "action": nodes[:, 1:verbs]}
        found |= {"entity mask": there[:, verbs:nouns], "action mask": there[:, 1:verbs]}
        return found | {"relationship": nodes[:, nouns:], "relationship mask": known}

    def _with_concepts(self, sides: dict[str, Embeddings]) -> dict[str, Embeddings]:
        """The levels of each side, and how likely each concept is, by level."""
        for level, classify in self.attributes.items():
            chances = classify({side: self._pooled(found, level) for side, found in sides.items()})
            sides = {side: found | {f"{level} concepts": chances[side]} for side, found in sides.items()}
        return sides

    def pooled(self, embeddings: Embeddings) -> dict[str, Tensor]:
        return {level: self._pooled(embeddings, level) for level in self.options.levels}

    def _pooled(self, found: Embeddings, level: str) -> Tensor:
        """(B, dim): a level of videos or captions in one vector."""
        if level == "global":
            return found["global"]
        return masked_mean(found[level], found["mask"] if "mask" in found else found[f"{level} mask"])

    @in_float32
    def level_scores(self, videos: Embeddings, texts: Embeddings) -> dict[str, Tensor]:
        """(texts, videos) of each level; of a caption without a phrase on a level 0.

        ``features`` is the mean of the others, ``concepts`` how far the concepts of both sides agree.
        """
        found = {}
        for level in self.options.levels:
            if level == "global":
                found[level] = unit(texts[level]) @ unit(videos[level]).T
            else:
                said = texts[level], texts[f"{level} mask"]
                found[level] = phrase_scores(videos[level], videos["mask"], *said, self.options)
        found["features"] = torch.stack(list(found.values())).mean(0)
        if self.attributes:
            found["concepts"] = self.attribute_score(videos, texts)
        return found

    def attribute_score(self, videos: Embeddings, texts: Embeddings) -> Tensor:
        """(texts, videos): the mean over levels of how far the concepts of both agree, least over most."""
        found = []
        for level in self.attributes:
            seen, said = videos[f"{level} concepts"], texts[f"{level} concepts"]
            # Least and most add up to both, and differ by |a - b|, whose sum needs no (texts, videos, concepts).
            both = said.sum(-1).unsqueeze(1) + seen.sum(-1).unsqueeze(0)
            apart = torch.cdist(said, seen, p=1)
            found.append((both - apart) / (both + apart).clamp(min=1e-6))
        return torch.stack(found).mean(0)


class Attributes(nn.Module):
    """Concept probabilities of a level. ``shared``: one projection for videos and texts; ``separate``: one each."""

    def __init__(self, dim: int, count: int, options: Options) -> None:
        super().__init__()
        sides = ("both",) if options.attributes == "shared" else ("video", "text")
        self.project = nn.ModuleDict({side: nn.Linear(dim, count) for side in sides})
        norms = ("video", "text") if options.attribute_norm == "separate" else sides
        self.norm = nn.ModuleDict({side: nn.BatchNorm1d(count) for side in norms})

    def forward(self, sides: dict[str, Tensor]) -> dict[str, Tensor]:
        """By side, ``video``, ``text`` or both, (B, dim) to (B, concepts), between 0 and 1.

        One normalisation for both sides takes its statistics from the rows of both together.
        """
        projected = {side: self.project[side if side in self.project else "both"](x) for side, x in sides.items()}
        if "both" in self.norm:
            joined = self.norm["both"](torch.cat(list(projected.values())))
            parts = joined.split([len(x) for x in projected.values()])
            projected = dict(zip(projected, parts, strict=True))
        else:
            projected = {side: self.norm[side](x) for side, x in projected.items()}
        return {side: x.sigmoid() for side, x in projected.items()}
