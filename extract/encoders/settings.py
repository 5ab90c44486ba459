"""Parse the options of streams, and check names; shared by all kinds of streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from ...errors import AmexError, did_you_mean
from ..video import Sampling
from ..video.decord_decoder import DECORD_CODECS, DECORD_FILE_BYTES, DECORD_FRAME_BYTES

SAMPLING_PARSERS: dict[str, Callable[[str], Any]] = {
    "fps": lambda text: None if text == "native" else float(text),
    **dict.fromkeys(("count", "frames", "step", "stride"), int),
    **dict.fromkeys(("at", "tail"), str),
}


def check_name(name: str, names: Collection[str], what: str, *, list_all: bool = True) -> str:
    """Return ``name`` if it is in ``names``. Otherwise raise AmexError with similar names, or with all of them."""
    if name in names:
        return name
    suggestion = did_you_mean(name, names)
    if list_all:
        raise AmexError(f"unknown {what} {name!r}{suggestion or ';'} choose from {', '.join(names)}")
    raise AmexError(f"unknown {what} {name!r}{suggestion or f'; there are {len(names)} others'}")


def parse(stream: str, options: Mapping[str, str], parsers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """Parse the values of ``--set`` options. Raise AmexError if an option is unknown or a value invalid."""
    parsed = {}
    for key, text in options.items():
        parser = parsers[check_name(key, parsers, f"option of stream {stream}:")]
        try:
            parsed[key] = parser(text)
        except ValueError as error:
            raise AmexError(f"stream {stream}: {key}={text!r} is not a number") from error
    return parsed


def parse_sampling(
    stream: str,
    default: Sampling,
    options: Mapping[str, str],
    parsers: Mapping[str, Callable[[str], Any]] = MappingProxyType({}),
    keys: Collection[str] = SAMPLING_PARSERS.keys(),
) -> tuple[Sampling, dict[str, Any]]:
    """Parse the options of a stream; return its sampling and the values of the other options.

    Args:
        stream: name of the stream.
        default: the sampling without options.
        parsers: other option -> parser.
        keys: the options of sampling that the stream supports.

    Raises:
        AmexError: if an option is unknown or out of range.
    """
    values = parse(stream, options, {key: SAMPLING_PARSERS[key] for key in keys} | dict(parsers))
    changes = {key: values.pop(key) for key in keys if key in values}
    if "count" in changes:
        changes.setdefault("fps", None)
    return dataclasses.replace(default, **changes), values


def compute_rules(deterministic: bool, **rules: Any) -> dict[str, Any]:
    """Return the ``compute`` entry of a spec. It omits ``deterministic`` if False, as older specs do."""
    return rules | ({"deterministic": True} if deterministic else {})


def decoder_rules(decoder: str = "auto") -> dict[str, Any]:
    """Return the ``decoder`` entry of a spec: the rules that choose the decoder of a video.

    Args:
        decoder: a value of ``--decoder``. Each value gives another spec, because chroma of 10-bit videos differs.
    """
    if decoder != "auto":
        return {"name": decoder}
    return {
        "name": "decord, else pyav",
        "decord_codecs": sorted(DECORD_CODECS),
        "decord_file_bytes": DECORD_FILE_BYTES,
        "decord_frame_bytes": DECORD_FRAME_BYTES,
    }
