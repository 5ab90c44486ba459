"""HCMI (Jiang et al., arXiv 2204.03382), reconstructed from its outline: contrast on three levels of granularity.

Frames are grouped into clips and these into a video, words into phrases and these into a sentence. Choices that the
outline leaves open are options; docs/concepts/models.md lists them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...errors import AmexError
from ..options import HCMI as Options
from ..options import Inputs
from .base import Embeddings, RetrievalModel
from .layers import attention_heads, in_float32, masked_mean, unit
from .parts import token_scores
from .rows import Rows
from .text import CaptionReader

LEVELS = {"frame_word": ("frame", "word"), "clip_phrase": ("clip", "phrase"), "video_sentence": ("video", "sentence")}


class HCMI(RetrievalModel):
    """The HCMI model; see the module."""

    known_levels = tuple(LEVELS)

    def __init__(self, options: Options, inputs: Inputs) -> None:
        super().__init__()
        self.options = options
        dim = options.dim
        self.rows = Rows(options, inputs, ("frame",), project=options.project)
        self.order = Order(dim, options) if options.temporal_layers else None
        self.reader = CaptionReader(options, inputs)
        self.text = nn.Sequential(nn.Linear(inputs.widths["text"], dim), nn.Dropout(options.dropout))
        self.sentence = nn.Linear(inputs.sentence, dim) if inputs.sentence else None
        if not options.project:
            self.text = nn.Sequential()
            self.sentence = nn.Identity() if inputs.sentence else None
            widths = inputs.widths | dict.fromkeys(inputs.objects, options.graph_dim)
            sizes = {*(widths[name] for name in options.streams), widths["text"], inputs.sentence or dim}
            if sizes != {dim}:
                raise AmexError(
                    f"model.project=false needs model.dim={dim} numbers in all streams, tokens and sentences, but they "
                    f"have {', '.join(map(str, sorted(sizes)))}"
                )
        self.to_clips, self.to_video = Aggregation(options.clips, options), Aggregation(1, options)
        self.to_phrases, self.to_sentence = Aggregation(options.phrases, options), Aggregation(1, options)
        learned = options.token_weights == "learned"
        self.weigh = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1))
                for name in ("frame", "word", "clip", "phrase")
                if learned
            }
        )
        self.level_weights = dict.fromkeys(options.levels, 1 / len(options.levels))
        self.dims = dict.fromkeys(options.levels, dim)
        self.main_level = "video_sentence" if "video_sentence" in options.levels else options.levels[0]

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """Return ``frame`` (B, T, dim), ``clip`` (B, clips, dim), their weights (0 in padding), ``video`` (B, dim)."""
        rows, mask = self.rows(video)
        frames = rows["frame"]
        if self.order is not None:
            frames = self.order(frames, mask)
        clips, clip_mask = self.to_clips(frames, mask)
        pooled, _ = self.to_video(clips, clip_mask)
        # The mean of the frames is added, so that a new model equals mean pooling.
        return self._embeddings(
            ("frame", frames, mask), ("clip", clips, clip_mask), "video", pooled[:, 0] + masked_mean(frames, mask)
        )

    def edge_weights(self, video: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        return self.rows.edge_weights(video)

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """Return ``word``, ``phrase`` and ``sentence``, as ``frame``, ``clip`` and ``video`` of a video."""
        mask, text = text["mask"], self.reader(text)
        words = self.text(text["values"])
        phrases, phrase_mask = self.to_phrases(words, mask)
        pooled, _ = self.to_sentence(phrases, phrase_mask)
        base = self.sentence(text["sentence"]) if self.sentence is not None else masked_mean(words, mask)
        return self._embeddings(
            ("word", words, mask), ("phrase", phrases, phrase_mask), "sentence", pooled[:, 0] + base
        )

    def _embeddings(
        self, fine: tuple[str, Tensor, Tensor], middle: tuple[str, Tensor, Tensor], top: str, x: Tensor
    ) -> Embeddings:
        embeddings = {top: unit(x)}
        for name, tokens, mask in (fine, middle):
            logits = self.weigh[name](tokens).squeeze(-1) if name in self.weigh else torch.zeros_like(tokens[..., 0])
            embeddings[name] = unit(tokens) * mask.unsqueeze(-1)
            embeddings[f"{name} weight"] = logits.float().masked_fill(~mask, -1e4).softmax(-1) * mask
        return embeddings

    @in_float32
    def level_scores(self, videos: Embeddings, texts: Embeddings) -> dict[str, Tensor]:
        """Return (texts, videos) scores by level, on the scale of cosines."""
        scores = {}
        for level in self.options.levels:
            video_part, text_part = LEVELS[level]
            if level == "video_sentence":
                scores[level] = texts[text_part] @ videos[video_part].T
                continue
            text_weights, video_weights = texts[f"{text_part} weight"], videos[f"{video_part} weight"]
            scores[level] = token_scores(texts[text_part], text_weights, videos[video_part], video_weights)
        return scores

    def pooled(self, embeddings: Embeddings) -> dict[str, Tensor]:
        pooled = {}
        for level in self.options.levels:
            name = next(name for name in LEVELS[level] if name in embeddings)
            x = embeddings[name]
            pooled[level] = x if x.ndim == 2 else (x * embeddings[f"{name} weight"].unsqueeze(-1)).sum(1)
        return pooled


class Aggregation(nn.Module):
    """Group tokens into ``count`` groups: self-attention, a feed-forward layer, then one of three groupings.

    ``assign``: a softmax over the tokens for each group, from a linear map. ``queries``: the same softmax, from learned
    queries. ``clusters``: clusters of close tokens by density peaks (Rodriguez and Laio, Science 2014), with learned
    weights within a cluster.
    """

    def __init__(self, count: int, options: Options) -> None:
        super().__init__()
        dim = options.dim
        self.count, self.reading = count, options.aggregation
        self.norm, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, attention_heads(dim), options.dropout, batch_first=True)
        self.forward_ = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(options.dropout), nn.Linear(4 * dim, dim)
        )
        for last in (self.attention.out_proj, self.forward_[-1]):  # initially, groups are means of the input
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        if self.reading == "queries":
            self.queries = nn.Parameter(torch.randn(count, dim) * 0.02)
            self.key = nn.Linear(dim, dim)
        else:
            self.logits = nn.Linear(dim, 1 if self.reading == "clusters" else count)
            nn.init.normal_(self.logits.weight, std=0.01)  # initially close to a mean

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Group (B, N, dim) with mask (B, N) into (B, count, dim) and a mask of non-empty groups (B, count)."""
        hidden = ~mask & mask.any(1, keepdim=True)  # attention over nothing is NaN
        normed = self.norm(x)
        y = x + self.attention(normed, normed, normed, key_padding_mask=hidden, need_weights=False)[0]
        y = y + self.forward_(self.norm2(y))
        weights = self.assign(y, mask)
        groups = torch.einsum("bnm,bnd->bmd", weights, y + x)
        return groups, (weights > 0).any(1)

    def assign(self, y: Tensor, mask: Tensor) -> Tensor:
        """Return (B, N, count): the weight of each token in each group; the weights of a group sum to 1."""
        if self.reading == "queries":
            logits = self.key(y) @ self.queries.T / math.sqrt(y.shape[-1])
        else:
            logits = self.logits(y).expand(-1, -1, self.count)
        allowed = mask.unsqueeze(-1).expand_as(logits)
        if self.reading == "clusters":
            allowed = allowed & density_peaks(y.detach().float(), mask, self.count)
        return logits.float().masked_fill(~allowed, -1e4).softmax(1) * allowed


class Order(nn.Module):
    """A transformer over the rows with position embeddings, as a residual."""

    def __init__(self, dim: int, options: Options, longest: int = 512) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            dim, attention_heads(dim), 4 * dim, options.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.net = nn.TransformerEncoder(layer, options.temporal_layers, enable_nested_tensor=False)
        self.places = nn.Embedding(longest, dim)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        # Count only present rows, so that padding between two streams shifts no position.
        places = (mask.cumsum(1) - 1).clamp(min=0, max=self.places.num_embeddings - 1)
        hidden = ~mask & mask.any(1, keepdim=True)
        return x + self.net(x + self.places(places), src_key_padding_mask=hidden)


def density_peaks(x: Tensor, mask: Tensor, count: int, neighbours: int = 3) -> Tensor:
    """Return (B, N, count) bool: the cluster of each token of (B, N, D). Fewer tokens give fewer clusters.

    The centre of a cluster is a token of high density, far from denser ones. Other tokens join the nearest centre.
    """
    distances = torch.cdist(x, x) / math.sqrt(x.shape[-1])
    valid = mask.unsqueeze(1) & mask.unsqueeze(2)
    near = distances.masked_fill(~valid, math.inf).topk(min(neighbours, x.shape[1]), largest=False).values
    near = near.masked_fill(near.isinf(), 0.0)
    density = (-near.square().mean(-1)).exp().masked_fill(~mask, -1.0)
    # A tiny offset orders tokens of equal density.
    density = density - 1e-6 * torch.arange(x.shape[1], device=x.device) / x.shape[1]
    denser = density.unsqueeze(1) > density.unsqueeze(2)
    largest = distances.masked_fill(~valid, 0.0).amax((1, 2), keepdim=True)
    reach = torch.where(denser & valid, distances, largest).amin(-1) + 1e-6
    peak = (density * reach).masked_fill(~mask, -1.0)
    centres = peak.topk(min(count, x.shape[1]), dim=-1).indices  # (B, count)
    usable = mask.gather(1, centres)
    to_centre = distances.gather(2, centres.unsqueeze(1).expand(-1, x.shape[1], -1)).masked_fill(
        ~usable.unsqueeze(1), math.inf
    )
    # A centre belongs to its own cluster, even if another centre is equally close.
    own = torch.arange(x.shape[1], device=x.device)[None, :, None] == centres.unsqueeze(1)
    nearest = to_centre.masked_fill(own & usable.unsqueeze(1), -1.0).argmin(-1)
    clusters = torch.zeros(*x.shape[:2], count, dtype=torch.bool, device=x.device)
    clusters.scatter_(2, nearest.unsqueeze(-1), True)
    return clusters & mask.unsqueeze(-1)
