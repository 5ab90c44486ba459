"""The data sets amex knows. Each is one module here that holds one ``DATASET``; adding one is adding a file."""

from __future__ import annotations

import importlib
import pkgutil

from ..clip import ManifestError
from .base import Dataset

DATASETS: dict[str, Dataset] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}").DATASET
    for module in pkgutil.iter_modules(__path__)
    if module.name != "base"
}


def dataset(name: str) -> Dataset:
    """A data set by name; raises ManifestError that lists them all."""
    if name not in DATASETS:
        raise ManifestError(f"unknown data set {name!r}; there is {', '.join(DATASETS)}")
    return DATASETS[name]
