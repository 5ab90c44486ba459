"""A vocabulary of words, learned from captions by the tokenizers library and stored in checkpoints as JSON."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import needs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING, UNKNOWN = "[PAD]", "[UNK]"


class Vocabulary:
    """Lower-cased words, split at spaces and punctuation. Number 0 is padding, 1 is an unknown word."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def of(cls, captions: Iterable[str], *, min_count: int = 1) -> Vocabulary:
        """Learn all words that occur at least ``min_count`` times in the captions."""
        with needs("train", "a model"):
            from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        special = [PADDING, UNKNOWN]
        trainer = trainers.WordLevelTrainer(
            vocab_size=10**7, min_frequency=min_count, special_tokens=special, show_progress=False
        )
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Read a vocabulary that ``to_json`` wrote."""
        with needs("train", "a model"):
            from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(text))

    def to_json(self) -> str:
        """Return the JSON of the tokenizers library."""
        self.tokenizer.no_truncation()  # truncation is a setting of one batch
        return self.tokenizer.to_str()

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def words(self) -> list[str]:
        """The words in the order of their numbers."""
        numbers = self.tokenizer.get_vocab()
        return sorted(numbers, key=numbers.__getitem__)

    def number(self, word: str) -> int:
        """Return the number of a word from a text; trailing punctuation is ignored."""
        return next(iter(self.tokenizer.encode(word).ids), 1)

    def batch(self, captions: Sequence[str], most: int) -> dict[str, Tensor]:
        """Return ``ids`` and ``mask`` (B, L), with at most ``most`` tokens per caption, including an end token."""
        self.tokenizer.enable_truncation(most)
        rows = [encoding.ids or [1] for encoding in self.tokenizer.encode_batch(list(captions))]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
        return {"ids": ids, "mask": mask}

    def word_of(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the index in ``caption.split()`` of the word of each token; -1 for special tokens."""
        self.tokenizer.no_truncation()
        indices = []
        for caption, encoding in zip(captions, self.tokenizer.encode_batch(list(captions)), strict=True):
            ends = [match.end() for match in re.finditer(r"\S+", caption)]
            pieces = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
            # Compare ends of words, since a token may begin with the space before its word.
            indices.append([-1 if special else bisect.bisect_left(ends, end) for (_, end), special in pieces])
        return indices
