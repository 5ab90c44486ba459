"""Words and their numbers, learned from captions by the tokenizers library, kept in the checkpoint as its JSON."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

PADDING, UNKNOWN = "[PAD]", "[UNK]"


class Vocabulary:
    """Lower-cased words, split at spaces and punctuation. Number 0 is padding, 1 any word it does not know."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def of(cls, captions: Iterable[str], *, min_count: int = 1) -> Vocabulary:
        """All words of the captions that occur ``min_count`` times or more."""
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
        """The vocabulary that ``to_json`` wrote."""
        return cls(Tokenizer.from_str(text))

    def to_json(self) -> str:
        """As the tokenizers library writes it."""
        self.tokenizer.no_truncation()  # which belongs to a batch
        return self.tokenizer.to_str()

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def words(self) -> list[str]:
        """By number."""
        known = self.tokenizer.get_vocab()
        return sorted(known, key=known.__getitem__)

    def number(self, word: str) -> int:
        """Of a word as it stands in a text, with the punctuation it may end in."""
        return next(iter(self.tokenizer.encode(word).ids), 1)

    def batch(self, captions: Sequence[str], most: int) -> dict[str, Tensor]:
        """``ids`` (B, L) and ``mask`` (B, L), at most ``most`` words a caption, what ends a caption among them."""
        self.tokenizer.enable_truncation(most)
        found = [encoding.ids or [1] for encoding in self.tokenizer.encode_batch(list(captions))]
        longest = max(len(ids) for ids in found)
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in found])
        mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in found])
        return {"ids": ids, "mask": mask}

    def word_of(self, captions: Sequence[str]) -> list[list[int]]:
        """Of each token of a caption the place in ``caption.split()`` of the word it is of; -1 for special tokens."""
        self.tokenizer.no_truncation()
        found = []
        for caption, encoding in zip(captions, self.tokenizer.encode_batch(list(captions)), strict=True):
            ends = [match.end() for match in re.finditer(r"\S+", caption)]
            pieces = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
            # By its last character: a token may begin with the blank before its word.
            found.append([-1 if special else bisect.bisect_left(ends, end) for (_, end), special in pieces])
        return found
