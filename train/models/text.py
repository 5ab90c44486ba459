"""Read captions as features (learned words, tokens of a stream, a text model trained along), and encode them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..options import Inputs, ModelOptions
from ..towers import build_tower, freeze_first, load_tower, tower_features, word_vectors
from .layers import AttentionPool, Pooling, SequenceEncoder, SequenceKind, masked_mean, projection, unit


class CaptionReader(nn.Module):
    """Turn the batch of ``Text.batch`` into a sequence of features for each caption.

    ``model.text=words``: a learned vector for each word. Name of a stream: its token features. ``tower:MODEL``: the
    features of a text model trained along. If captions have role graphs, the tokens of each word are averaged, since
    nodes of the graph consist of words.

    Attributes:
        width: dimension of a feature.
    """

    def __init__(self, options: ModelOptions, inputs: Inputs) -> None:
        super().__init__()
        self.options, self.width = options, inputs.widths["text"]
        self.tower = build_tower(inputs.tower) if inputs.tower else None
        if self.tower is not None and options.tower_layers is not None:
            freeze_first(self.tower, options.tower_layers)
        self.embedding = None
        if options.text == "words":
            self.embedding = nn.Embedding(inputs.words, self.width, padding_idx=0)
            if options.needs_graphs:  # initialised as in HGR's official program
                nn.init.uniform_(self.embedding.weight, -1 / math.sqrt(self.width), 1 / math.sqrt(self.width))

    def start(self, words: Sequence[str]) -> None:
        """Load the weights of the tower, or the initial word vectors; ``words`` is the vocabulary in order."""
        if self.tower is not None:
            load_tower(self.tower, self.options.tower)
        if self.embedding is not None and self.options.word_vectors:
            vectors, has_vector = word_vectors(self.options.word_vectors, words)
            with torch.no_grad():
                self.embedding.weight[torch.from_numpy(has_vector)] = torch.from_numpy(vectors[has_vector])

    def forward(self, text: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch with ``values`` (B, L, width), and ``sentence`` (B, D) if the source has one.

        Args:
            text: ``values`` or ``ids``, and ``mask`` (B, L). If tokens are averaged into words: ``token_mask`` (B, K),
                ``word_of`` (B, K), the word of each token or -1, and ``mask`` is that of the words.
        """
        features = {}
        if self.embedding is not None:
            features["values"] = self.embedding(text["ids"])
        elif self.tower is not None:
            features = tower_features(self.tower, text["ids"], text.get("token_mask", text["mask"]))
        if "word_of" in text:
            tokens = features.get("values", text.get("values"))
            features["values"] = average_words(tokens, text["word_of"], text["mask"].shape[1])
        return text | features


def average_words(tokens: Tensor, word_of: Tensor, count: int) -> Tensor:
    """Average the tokens of each word: (B, count, D), zeros for a word without tokens.

    Args:
        tokens: (B, K, D).
        word_of: (B, K) the word of each token; tokens with a number below 0 or from ``count`` on are ignored.
    """
    valid = (word_of >= 0) & (word_of < count)
    places = torch.where(valid, word_of, count).unsqueeze(-1)
    sums = tokens.new_zeros(len(tokens), count + 1, tokens.shape[-1])
    sums = sums.scatter_add(1, places.expand_as(tokens), tokens)[:, :count]
    numbers = torch.zeros(len(tokens), count + 1, 1, dtype=tokens.dtype, device=tokens.device)
    numbers = numbers.scatter_add(1, places, valid.unsqueeze(-1).to(tokens.dtype))[:, :count]
    return sums / numbers.clamp(min=1)


class WordBag(nn.Module):
    """Sum of a caption's learned word vectors, divided by the root of the number of words. Drops whole words."""

    def __init__(self, words: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.vectors = nn.Embedding(words, dim, padding_idx=0)
        # Word vectors start small, as a correction of the sentence; the unknown word (1) starts at zero.
        nn.init.normal_(self.vectors.weight, std=0.3 / math.sqrt(dim))
        with torch.no_grad():
            self.vectors.weight[:2] = 0
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode word ids (B, W), 0 for padding, to (B, dim)."""
        present = (ids != 0).unsqueeze(-1)
        words = self.vectors(ids) * self.dropout(present.float())
        # Scaled by the root of the dimension, as in a transformer (Vaswani et al., NeurIPS 2017): a word occurs in few
        # captions and must learn from few steps.
        return words.sum(1) * (words.shape[-1] / present.sum(1).clamp(min=1)).sqrt()


class SentenceHead(nn.Module):
    """Project a complete caption: its sentence vector if the text stream has one, else the mean of its tokens."""

    def __init__(self, width: int, dim: int, *, own: bool, hidden: int, dropout: float) -> None:
        super().__init__()
        self.own = own
        self.project = nn.Sequential(nn.LayerNorm(width), projection(width, dim, hidden, dropout))

    def forward(self, x: Tensor, text: dict[str, Tensor]) -> Tensor:
        return self.project(text["sentence"] if self.own else masked_mean(x, text["mask"]))


class TokenHead(nn.Module):
    """Encode a caption from its ordered tokens: projection, sequence encoder, pooling, linear map."""

    def __init__(self, width: int, dim: int, *, sequence: SequenceKind, pooling: Pooling, dropout: float) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim), nn.Dropout(dropout))
        self.sequence = SequenceEncoder(dim, sequence, dropout)
        self.pool = AttentionPool(dim, pooling, dropout)
        self.leave = nn.Linear(dim, dim)

    def forward(self, x: Tensor, text: dict[str, Tensor]) -> Tensor:
        mask = text["mask"]
        return self.leave(self.pool(self.sequence(self.project(x), mask), mask))


class TextEncoder(nn.Module):
    """Encode captions to one unit vector per head, from token features or word vectors.

    Args:
        dim: dimension of the vectors.
        words: vocabulary size of the bag of words that each head adds; 0: no bag.
        heads: modules that compute a vector from the features and the caption, by name.
        dropout: dropout rate of the words of the bag.
    """

    def __init__(self, dim: int, *, words: int, heads: dict[str, nn.Module], dropout: float) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)
        self.bags = nn.ModuleDict({head: WordBag(words, dim, dropout) for head in heads if words})

    def forward(self, text: dict[str, Tensor]) -> dict[str, Tensor]:
        """Encode ``values`` (B, L, width) with ``mask`` (B, L) to a unit vector (B, dim) per head.

        Heads may need ``sentence`` (B, width). A bag of words needs ``ids`` (B, W), 0 for padding.
        """
        vectors = {}
        for name, head in self.heads.items():
            vector = head(text["values"], text)
            if name in self.bags:
                vector = vector + self.bags[name](text["ids"])
            vectors[name] = unit(vector)
        return vectors
