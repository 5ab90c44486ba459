"""Models of text-video retrieval: trained, evaluated and searched from a store alone. Knows no video.

``load`` and ``fit`` are the way in from Python; they are imported when they are first asked for, since torch is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Embedded, Ranked, TrainedModel, fit, load

__all__ = ["Embedded", "Ranked", "TrainedModel", "fit", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
