"""What the planning of streams of every kind shares: options given as text, and names that must be known."""

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


def known(name: str, names: Collection[str], what: str, *, list_all: bool = True) -> str:
    """``name`` if it is among ``names``; raises AmexError with the nearest one, or all of them, otherwise."""
    if name in names:
        return name
    near = did_you_mean(name, names)
    if list_all:
        raise AmexError(f"unknown {what} {name!r}{near or ';'} there is {', '.join(names)}")
    raise AmexError(f"unknown {what} {name!r}{near or f'; there are {len(names)} others'}")


def parse(stream: str, options: Mapping[str, str], parsers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The values of ``--set`` options; raises AmexError that names the stream and the option."""
    parsed = {}
    for key, text in options.items():
        parser = parsers[known(key, parsers, f"option of stream {stream}:")]
        try:
            parsed[key] = parser(text)
        except ValueError as error:
            raise AmexError(f"stream {stream}: {key}={text!r} is not a number") from error
    return parsed


def sampling_and_more(
    stream: str,
    default: Sampling,
    options: Mapping[str, str],
    parsers: Mapping[str, Callable[[str], Any]] = MappingProxyType({}),
    keys: Collection[str] = SAMPLING_PARSERS.keys(),
) -> tuple[Sampling, dict[str, Any]]:
    """A stream's sampling, and the values of its other options.

    Args:
        default: the sampling that the options change.
        parsers: of the other options.
        keys: the options of sampling that the stream has.

    Raises:
        AmexError: naming the stream and an option that is unknown or out of range.
    """
    values = parse(stream, options, {key: SAMPLING_PARSERS[key] for key in keys} | dict(parsers))
    sampled = {key: values.pop(key) for key in keys if key in values}
    if "count" in sampled:
        sampled.setdefault("fps", None)
    return dataclasses.replace(default, **sampled), values


def compute_rules(deterministic: bool, **rules: Any) -> dict[str, Any]:
    """How a spec says what computes a stream. ``deterministic`` is there only if asked for: older specs have none."""
    return rules | ({"deterministic": True} if deterministic else {})


def decoder_rules(decoder: str = "auto") -> dict[str, Any]:
    """How a spec says which decoder serves which video.

    Args:
        decoder: as ``--decoder`` takes it. Decoders differ in chroma on videos of 10 bits, so each choice is its own.
    """
    if decoder != "auto":
        return {"name": decoder}
    return {
        "name": "decord, else pyav",
        "decord_codecs": sorted(DECORD_CODECS),
        "decord_file_bytes": DECORD_FILE_BYTES,
        "decord_frame_bytes": DECORD_FRAME_BYTES,
    }
