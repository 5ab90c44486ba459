"""Captions to padded batches: token features of a stream, numbers of words, the tensors of role graphs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import AmexError
from ..features import Batch, Store, Stream
from ..features.dataset import all_rows, pad
from ..manifests import Clip
from .concepts import Concepts
from .config import Config
from .rolegraphs import Graphs, graph_tensors
from .towers import tower_vocabulary
from .vocabulary import Vocabulary


class TextError(AmexError):
    """Captions cannot be made into what a model takes."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """What to make batches of captions from: token features of a stream, a vocabulary, role graphs, concepts.

    Attributes:
        vocabulary: of words; or of tokens, where a text model is trained along or tokens make words.
        makes_words: whether tokens are averaged to words.
    """

    stream: Stream | None = None
    vocabulary: Vocabulary | None = None
    makes_words: bool = False
    graphs: Graphs | None = None
    concepts: Concepts | None = None

    def batch(
        self, captions: Sequence[str], tokens: tuple[Batch, Sequence[int]] | None, most: int
    ) -> dict[str, Tensor]:
        """Captions, padded: token features ``values`` with their ``mask``, and the numbers of words, ``ids``.

        With role graphs words are those of ``caption.split()``, and the graphs' tensors are there beside them.

        Args:
            tokens: a batch that has the captions, and their places in it; None where captions need no features.
            most: tokens or words a caption, the first of it.
        """
        if self.graphs is not None:
            assert self.vocabulary is not None
            made = graph_tensors(captions, self.graphs, self.vocabulary.number, words=most, **self.graphs.sizes)
            return made | self._pieces(captions, tokens) if self.makes_words else made
        made = self.vocabulary.batch(captions, most) if self.vocabulary is not None else {}
        if tokens is not None:
            made |= tensors(pad(*tokens, partial(all_rows, most=most)))
        return made

    def _pieces(self, captions: Sequence[str], tokens: tuple[Batch, Sequence[int]] | None) -> dict[str, Tensor]:
        """The tokens that words are made of: ``values`` or ``ids``, their ``token_mask``, ``word_of`` each."""
        assert self.vocabulary is not None
        words = self.vocabulary.word_of(captions)
        longest = max(map(len, words))
        made = tensors(pad(*tokens)) if tokens is not None else self.vocabulary.batch(captions, longest)
        made["token_mask"] = made.pop("mask")
        counts = made["token_mask"].sum(1).tolist()
        word_of = torch.full(made["token_mask"].shape, -1)
        for row, (caption, count, places) in enumerate(zip(captions, counts, words, strict=True)):
            # A stream may hold fewer tokens, cut where its model must.
            if count != len(places) and count != most_tokens(self.stream):
                raise TextError(
                    f"the stream of text holds {count} tokens of {caption!r}, its tokenizer makes {len(places)}: the "
                    "stream is of another model"
                )
            word_of[row, :count] = torch.tensor(places[:count])
        return made | {"word_of": word_of}


def make_text(store: Store, config: Config, clips: Sequence[Clip], manifest: Path) -> Text:
    """The stream of text, a vocabulary of the training captions, role graphs: what of these the model wants."""
    options = config.model
    stream = store[options.text_stream] if options.text_stream else None
    vocabulary = tower_vocabulary(options.tower) if options.tower else None
    if options.makes_words and stream is not None:
        vocabulary = stream_tokenizer(stream, options.tokenizer)
    if options.needs_words:
        captions = [caption for clip in clips for caption in clip.captions]
        vocabulary = Vocabulary.of(captions, min_count=config.data.min_count)
    graphs = Graphs.beside(manifest, options) if config.reads_graphs else None
    concepts = None
    if graphs is not None and config.concepts:
        every = dict.fromkeys(caption for clip in clips for caption in clip.captions)
        concepts = Concepts.of(every, graphs, config.concepts)
    return Text(
        stream=stream,
        vocabulary=vocabulary,
        makes_words=options.makes_words,
        graphs=graphs if options.needs_graphs else None,
        concepts=concepts,
    )


def most_tokens(stream: Stream | None) -> int:
    """Where a stream of text cuts captions; 0 where it is not known that it does."""
    return stream.spec.get("max_tokens", 0) if stream is not None else 0


def stream_tokenizer(stream: Stream, name: str) -> Vocabulary:
    """The tokenizer of the text model that made a stream.

    Args:
        name: of the model; empty: what the store names.

    Raises:
        TextError: if it makes other tokens of captions than the stream holds.
    """
    made_with = str(stream.provenance.get("weights", ""))
    hub, _, revision = made_with.partition("/snapshots/")  # as the hub's cache names folders
    named = hub.removeprefix("models--").replace("--", "/", 1) if revision else made_with
    named = name or ("minilm" if "minilm" in made_with else named)
    if not named:
        raise TextError(
            f"{stream.path.parent}: which model made stream {stream.name!r} is not known, and its tokenizer is needed: "
            "name it with --set model.tokenizer=MODEL"
        )
    vocabulary = tower_vocabulary(named)
    vocabulary.tokenizer.no_truncation()
    for caption in itertools.islice(stream, 20):
        arrays, ids = stream[caption].arrays, vocabulary.tokenizer.encode(caption).ids
        # What was imported may have no numbers of tokens; they are then as many, or the last are cut.
        held = arrays["tokens"].tolist() if "tokens" in arrays else ids[: len(arrays["values"])]
        if held != ids and (held != ids[: len(held)] or len(held) != most_tokens(stream)):
            raise TextError(
                f"{stream.path.parent}: {named} makes other tokens of {caption!r} than stream "
                f"{stream.name!r} holds: name the model that made it with --set model.tokenizer=MODEL"
            )
    return vocabulary


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as tensors, of the types in which they are stored: ``RetrievalModel.to_device`` makes float32 of them."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
