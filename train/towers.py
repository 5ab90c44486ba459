"""The text tower of a CLIP, trained with a model instead of read from the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor, nn

from ..errors import AmexError, first_line
from .vocabulary import Vocabulary


def tower_settings(name: str) -> dict[str, Any]:
    """The configuration of a CLIP's text tower, as plain values. Raises AmexError."""
    from transformers import CLIPTextConfig

    return _loaded(name, lambda: CLIPTextConfig.from_pretrained(name).to_dict())


def tower_vocabulary(name: str) -> Vocabulary:
    """Its tokenizer. Raises AmexError."""
    from transformers import CLIPTokenizerFast

    made = _loaded(name, lambda: CLIPTokenizerFast.from_pretrained(name).backend_tokenizer.to_str())
    return Vocabulary(Tokenizer.from_str(made))


def build_tower(settings: dict[str, Any]) -> nn.Module:
    """A tower with fresh weights."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig.from_dict(dict(settings)))


def load_tower(tower: nn.Module, name: str) -> None:
    """Gives a tower the weights of a CLIP. Raises AmexError."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    made, found = _loaded(
        name, lambda: transformers.CLIPTextModelWithProjection.from_pretrained(name, output_loading_info=True)
    )
    if missing := sorted(found["missing_keys"]):
        raise AmexError(f"model.text=clip:{name}: its weights lack {missing[0]} ({len(missing)} in all)")
    tower.load_state_dict(made.state_dict())


def tower_features(tower: nn.Module, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """``values`` (B, L, D), each token projected as CLIP projects the last, and ``sentence`` (B, D), of that one."""
    out = tower(input_ids=ids, attention_mask=mask.long())
    return {"values": tower.text_projection(out.last_hidden_state), "sentence": out.text_embeds}


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, RuntimeError) as error:
        raise AmexError(
            f"model.text=clip:{name}: no CLIP can be loaded from there ({first_line(error)}); give a folder with its "
            "weights, or a stream of text that amex extract made"
        ) from error
