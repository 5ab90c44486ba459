"""What captions are read as by every model: words, tokens of a stream, or a text model that learns with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..options import Inputs, ModelOptions
from ..towers import build_tower, freeze_first, load_tower, tower_features, word_vectors


class CaptionReader(nn.Module):
    """A caption's features, one after the other, from what ``Text.batch`` makes of it.

    ``model.text=words``: a vector for each word, learned here. A stream's name: its token features. ``tower:MODEL``:
    the features of a text model that is trained along. Where captions come with role graphs, the tokens of each word
    are averaged, since a graph's nodes are made of words.

    Attributes:
        width: of a feature.
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
            if options.needs_graphs:  # as HGR's official program draws them
                nn.init.uniform_(self.embedding.weight, -1 / math.sqrt(self.width), 1 / math.sqrt(self.width))

    def start(self, words: Sequence[str]) -> None:
        """Takes over the weights of the tower, or the vectors of words, by their numbers, that the options name."""
        if self.tower is not None:
            load_tower(self.tower, self.options.tower)
        if self.embedding is not None and self.options.word_vectors:
            vectors, known = word_vectors(self.options.word_vectors, words)
            with torch.no_grad():
                self.embedding.weight[torch.from_numpy(known)] = torch.from_numpy(vectors[known])

    def forward(self, text: dict[str, Tensor]) -> dict[str, Tensor]:
        """The caption with ``values`` (B, L, width), and ``sentence`` (B, D) where there is one.

        Args:
            text: ``values`` or ``ids``, and ``mask`` (B, L). Where tokens make words ``token_mask`` (B, K) is that of
                the tokens, and ``word_of`` (B, K) tells the word of each, -1 for none; ``mask`` is that of the words.
        """
        found = {}
        if self.embedding is not None:
            found["values"] = self.embedding(text["ids"])
        elif self.tower is not None:
            found = tower_features(self.tower, text["ids"], text.get("token_mask", text["mask"]))
        if "word_of" in text:
            tokens = found.get("values", text.get("values"))
            found["values"] = words_of(tokens, text["word_of"], text["mask"].shape[1])
        return text | found


def words_of(tokens: Tensor, word_of: Tensor, count: int) -> Tensor:
    """(B, count, D): the mean of each word's tokens; zeros for a word without.

    Args:
        tokens: (B, K, D).
        word_of: (B, K), the place of each token's word; those below 0, and of ``count`` or more, are left out.
    """
    kept = (word_of >= 0) & (word_of < count)
    places = torch.where(kept, word_of, count).unsqueeze(-1)
    sums = tokens.new_zeros(len(tokens), count + 1, tokens.shape[-1])
    sums = sums.scatter_add(1, places.expand_as(tokens), tokens)[:, :count]
    numbers = torch.zeros(len(tokens), count + 1, 1, dtype=tokens.dtype, device=tokens.device)
    numbers = numbers.scatter_add(1, places, kept.unsqueeze(-1).to(tokens.dtype))[:, :count]
    return sums / numbers.clamp(min=1)
