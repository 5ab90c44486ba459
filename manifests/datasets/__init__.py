"""The data sets amex knows. Each is one module here that holds one ``DATASET``; adding one is adding a file."""

from __future__ import annotations

import importlib
import pkgutil

from ...errors import did_you_mean
from ..clip import ManifestError
from .base import Dataset, Protocol

DATASETS: dict[str, Dataset] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}").DATASET
    for module in pkgutil.iter_modules(__path__)
    if module.name != "base"
}

__all__ = ["DATASETS", "Dataset", "Protocol", "dataset", "named"]


def dataset(name: str) -> Dataset:
    """A data set by name; raises ManifestError that says which is meant, or lists them all."""
    if name not in DATASETS:
        there = f"there is {', '.join(DATASETS)}"
        raise ManifestError(f"unknown data set {name!r}; {there}{did_you_mean(name, DATASETS)}")
    return DATASETS[name]


def named(text: str) -> tuple[Dataset, str | None]:
    """What ``NAME`` or ``NAME:PROTOCOL`` means: a data set, and one of its protocols; raises ManifestError."""
    name, colon, protocol = text.partition(":")
    chosen = dataset(name)
    return chosen, chosen.protocol(protocol) if colon else None
