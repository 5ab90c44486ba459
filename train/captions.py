"""Turn captions into padded batches: token features of a stream, word ids, tensors of role graphs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import AmexError, plural
from ..features import Batch, Store, Stream
from ..features.dataset import all_rows, pad
from ..manifests import Clip
from .concepts import Concepts
from .config import Config
from .rolegraphs import Graphs, graph_tensors
from .towers import text_model_name, tower_vocabulary
from .vocabulary import Vocabulary


class TextError(AmexError):
    """Captions cannot be turned into a model's input."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """The sources of caption batches: a text stream, a vocabulary, role graphs, concepts.

    Attributes:
        stream: token features; None if the model reads none.
        vocabulary: of words; of tokens if a text model is trained along or tokens are averaged into words.
        pools_tokens: whether tokens are averaged into words.
        graphs: role graphs of the captions; None if the model reads none.
        concepts: labels of concepts; None if no concepts are taught.
    """

    stream: Stream | None = None
    vocabulary: Vocabulary | None = None
    pools_tokens: bool = False
    graphs: Graphs | None = None
    concepts: Concepts | None = None

    def batch(
        self, captions: Sequence[str], tokens: tuple[Batch, Sequence[int]] | None, most: int
    ) -> dict[str, Tensor]:
        """Return padded tensors of captions: ``values`` (token features), ``mask``, ``ids`` (of words).

        With role graphs, words are those of ``caption.split()``, and the tensors of the graphs are added.

        Args:
            tokens: a batch that contains the captions, and their positions in it; None if no features are read.
            most: maximum number of tokens or words of a caption; later ones are cut.
        """
        if self.graphs is not None:
            assert self.vocabulary is not None
            batch = graph_tensors(captions, self.graphs, self.vocabulary.number, words=most, **self.graphs.sizes)
            return batch | self._pieces(captions, tokens) if self.pools_tokens else batch
        batch = self.vocabulary.batch(captions, most) if self.vocabulary is not None else {}
        if tokens is not None:
            batch |= tensors(pad(*tokens, partial(all_rows, most=most)))
        return batch

    def _pieces(self, captions: Sequence[str], tokens: tuple[Batch, Sequence[int]] | None) -> dict[str, Tensor]:
        """Return the tokens to average into words: ``values`` or ``ids``, ``token_mask``, and their ``word_of``."""
        assert self.vocabulary is not None
        words = self.vocabulary.word_of(captions)
        longest = max(map(len, words))
        batch = tensors(pad(*tokens)) if tokens is not None else self.vocabulary.batch(captions, longest)
        batch["token_mask"] = batch.pop("mask")
        counts = batch["token_mask"].sum(1).tolist()
        word_of = torch.full(batch["token_mask"].shape, -1)
        for row, (caption, count, places) in enumerate(zip(captions, counts, words, strict=True)):
            # The stream's model may cut long captions.
            if count != len(places) and count != token_limit(self.stream):
                raise TextError(
                    f"the text stream has {plural(count, 'token')} for {caption!r}, its tokenizer makes {len(places)}: "
                    "another model made the stream"
                )
            word_of[row, :count] = torch.tensor(places[:count])
        return batch | {"word_of": word_of}


def make_text(store: Store, config: Config, clips: Sequence[Clip], manifest: Path) -> Text:
    """Collect the caption sources that a model needs: text stream, vocabulary, role graphs, concepts."""
    options = config.model
    stream = store[options.text_stream] if options.text_stream else None
    vocabulary = tower_vocabulary(options.tower) if options.tower else None
    if options.pools_tokens and stream is not None:
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
        pools_tokens=options.pools_tokens,
        graphs=graphs if options.needs_graphs else None,
        concepts=concepts,
    )


def token_limit(stream: Stream | None) -> int:
    """Return the length at which a text stream cuts captions, in tokens; 0 if unknown."""
    return stream.spec.get("max_tokens", 0) if stream is not None else 0


def stream_tokenizer(stream: Stream, name: str) -> Vocabulary:
    """Return the tokenizer of the text model that made a stream.

    Args:
        name: of the model; empty: the model that the store records.

    Raises:
        TextError: if the model is unknown, or if its tokens differ from those in the stream.
    """
    model = name or text_model_name(str(stream.provenance.get("weights", "")))
    if not model:
        raise TextError(
            f"{stream.path.parent}: the tokenizer of stream {stream.name!r} is needed, but the store does not record "
            "its model: name it with --set model.tokenizer=MODEL"
        )
    vocabulary = tower_vocabulary(model)
    vocabulary.tokenizer.no_truncation()
    for caption in itertools.islice(stream, 20):
        arrays, ids = stream[caption].arrays, vocabulary.tokenizer.encode(caption).ids
        # Imported features may have no token ids. Then only the number of tokens is compared.
        stored = arrays["tokens"].tolist() if "tokens" in arrays else ids[: len(arrays["values"])]
        if stored != ids and (stored != ids[: len(stored)] or len(stored) != token_limit(stream)):
            raise TextError(
                f"{stream.path.parent}: the tokens of {model} for {caption!r} differ from those in stream "
                f"{stream.name!r}: name the model that made it with --set model.tokenizer=MODEL"
            )
    return vocabulary


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Convert arrays to tensors without changing types; ``RetrievalModel.to_device`` converts to float32."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
