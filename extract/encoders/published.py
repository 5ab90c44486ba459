"""Look up the source, URL and licence of weights by their digest or name."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import AmexError
from .networks import NETWORKS
from .objects import SHAPES_DETECTOR, find_config, published
from .weights import FromHub, UserSupplied


def known_weights(spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, str]:
    """Look up the weights of a stream.

    Args:
        spec: of the stream.
        provenance: of the stream.

    Returns:
        ``source`` and, if known, ``url`` and ``licence``. ``by`` is ``name`` if the weights were recognised by their
        name, because no digest is published. Empty if the weights are unknown.
    """
    digest, weights = spec.get("weights_sha256"), str(provenance.get("weights", ""))
    if weights.startswith("random:"):
        return {"source": f"random, from seed {weights.removeprefix('random:')}", "licence": "none needed"}
    hub, _, revision = weights.partition("/snapshots/")
    if hub.startswith("models--") and revision:  # the folder names of the hub's cache
        name = hub.removeprefix("models--").replace("--", "/", 1)
        hubs = (network.published for network in NETWORKS.values() if isinstance(network.published, FromHub))
        licences = {file.name: {"licence": file.licence} for file in hubs}
        return {"source": f"{name}, revision {revision}, by the model hub", **licences.get(name, {}), "by": "name"}
    files = (network.published for network in NETWORKS.values() if not isinstance(network.published, FromHub))
    for file in itertools.chain([SHAPES_DETECTOR], files, _of_detector(spec)):
        if isinstance(file, UserSupplied):
            if weights == file.url.rsplit("/", 1)[-1] and spec.get("network") in NETWORKS:
                return {**_facts(file), "by": "name"}
        elif digest and str(digest).startswith(file.sha256):
            return _facts(file)
    return {}


def _of_detector(spec: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the published checkpoint of a packaged MMDetection configuration. Imports MMDetection."""
    kind, _, config = str(spec.get("network", "")).partition("mmdet:")
    if config and not kind:
        with contextlib.suppress(AmexError, ImportError):  # then the weights are unknown, which is no error
            if file := published(find_config(config)):
                yield file


def _facts(file: Any) -> dict[str, str]:
    url = {"url": file.url} if hasattr(file, "url") else {}
    return {"source": file.source, **url, "licence": file.licence}
