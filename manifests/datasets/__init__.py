"""The supported data sets. Each module in this folder defines one ``DATASET``; to add a data set, add a module."""

from __future__ import annotations

import importlib
import pkgutil

from ...errors import did_you_mean
from ...foreign import import_name
from ..clip import ManifestError
from .base import Dataset, Protocol

DATASETS: dict[str, Dataset] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}").DATASET
    for module in pkgutil.iter_modules(__path__)
    if module.name != "base"
}

__all__ = ["DATASETS", "Dataset", "Protocol", "dataset", "named"]


def dataset(name: str) -> Dataset:
    """Return a data set by name, or your own by ``python:MODULE:NAME``.

    Raises:
        ManifestError: if there is none, listing all.
    """
    if name.startswith("python:"):
        own = import_name(name)
        if not isinstance(own, Dataset):
            raise ManifestError(f"{name} is a {type(own).__name__}, not an amex.manifests.Dataset")
        return own
    if name not in DATASETS:
        choices = f"known are {', '.join(DATASETS)}"
        raise ManifestError(f"unknown data set {name!r}; {choices}{did_you_mean(name, DATASETS)}")
    return DATASETS[name]


def named(text: str) -> tuple[Dataset, str | None]:
    """Return the data set that ``NAME`` or ``NAME:PROTOCOL`` names, and its protocol or None.

    Raises:
        ManifestError: if there is no such data set or protocol.
    """
    if text.startswith("python:"):
        module, _, rest = text.removeprefix("python:").partition(":")
        attribute, colon, protocol = rest.partition(":")
        chosen = dataset(f"python:{module}:{attribute}")
    else:
        name, colon, protocol = text.partition(":")
        chosen = dataset(name)
    return chosen, chosen.protocol(protocol) if colon else None
