"""Names that a room offers and imports when they are first asked for: torch takes seconds, and few uses need it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def offer(room: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], list[str]]:
    """``__getattr__`` and ``__all__`` of a package.

    Args:
        room: the package's ``__name__``.
        modules: what it offers -> the module in it that has that.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{modules[name]}", room), name)

    return get, sorted(modules)
