"""amex: extract video features once into one Zarr store, and train text-video retrieval from that store.

    import amex

    store = amex.extract("my_videos", ["r2plus1d_18"], "my.zarr")  # decode every video once
    rows = store["r2plus1d_18"]["a.mp4"]                           # rows.values (rows, 512), rows.times (rows, 2)
    hits = amex.search("my.zarr", "a red circle pushes a square")  # a store, or the folder of a trained run

The names below are the public interface. Each is imported on first use, so that ``import amex`` loads no torch.
``amex.extract`` is the function and also the package that implements it.
"""

from __future__ import annotations

import importlib
import types
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import extract, extract_file, fit, load, search
    from .errors import AmexError
    from .features import Batch, Rows, Store, Stream, open_store
    from .manifests import Clip
    from .train import Embedded, FitResult, Ranked, TrainedModel
    from .train.search import Hit

__version__ = version("amex")
__all__ = [
    "AmexError",
    "Batch",
    "Clip",
    "Embedded",
    "FitResult",
    "Hit",
    "Ranked",
    "Rows",
    "Store",
    "Stream",
    "TrainedModel",
    "__version__",
    "extract",
    "extract_file",
    "fit",
    "load",
    "open_store",
    "search",
]

_MODULES = {
    "AmexError": "errors",
    "Batch": "features",
    "Clip": "manifests",
    "Embedded": "train.api",
    "FitResult": "train.api",
    "Hit": "train.search",
    "Ranked": "train.api",
    "Rows": "features",
    "Store": "features",
    "Stream": "features",
    "TrainedModel": "train.api",
    "extract_file": "api",
    "fit": "api",
    "load": "api",
    "open_store": "features",
    "search": "api",
}


def __getattr__(name: str) -> Any:
    if name == "extract":
        return importlib.import_module(".extract", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class ExtractPackage(types.ModuleType):
    """The package ``amex.extract``, which is also the function ``amex.extract``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self.__name__,)  # else cloudpickle, which knows modules by type, refuses it

    def __get__(self, instance: object, owner: type | None = None) -> ExtractPackage:
        return self  # a descriptor is a routine to ``inspect``, so that ``help(amex)`` lists it among the functions

    @property
    def __wrapped__(self) -> Any:
        """The function, whose signature ``inspect.signature`` shows for the package."""
        from .api import extract

        return extract

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        import inspect

        head, _, body = (inspect.getdoc(self.__wrapped__) or "").partition("\n")
        signature = str(inspect.signature(self.__wrapped__)).replace("'", "")
        return f"{head}\n\namex.extract{signature}\n{body}\n\n{self.__dict__['__doc__']}"
