"""Models of text-video retrieval: trained, evaluated and searched from a store alone, without videos.

``amex.fit`` trains a model and ``amex.load`` returns a ``TrainedModel``. The classes are imported on first use, since
they need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Embedded, FitResult, Ranked, TrainedModel

__all__ = ["Embedded", "FitResult", "Ranked", "TrainedModel"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
