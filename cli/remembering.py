"""What an extraction leaves for later commands: the clips and the folder of videos that a store was made from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import plural
from .options import ExtractOptions
from .places import default_manifest, known

if TYPE_CHECKING:
    from ..manifests import Clip


def remember(options: ExtractOptions, clips: Sequence[Clip]) -> None:
    """Keeps for later commands what a store is made from: its videos, and its clips in a manifest beside the store.

    Of a store that is not on this machine only the paths are kept.
    """
    from ..features import create_store, read_sources, write_sources

    create_store(options.store)
    before = read_sources(options.store)
    manifest, written = options.manifest_path, before.written
    if manifest is None and (beside := _beside(options, clips)) is not None:
        manifest, written = beside, " ".join(update(beside, clips, written.split()))
    write_sources(options.store, manifest=manifest, videos=options.videos, written=written)


def update(path: Path, clips: Sequence[Clip], written: Sequence[str]) -> list[str]:
    """Writes the manifest of a store, unless a user has changed it since amex did; then a line says so.

    Splits that were drawn in it since stay: `amex manifest split` writes in place.

    Args:
        written: digests of the manifests that amex wrote beside the store.

    Returns:
        Those that are there now.
    """
    from ..manifests import ManifestError, read_manifest, write_manifest

    try:
        there = read_manifest(path) if path.exists() else []
    except ManifestError:  # whatever it is, it is not what amex wrote
        there = None
    if there and _digest(there) not in written and _digest(there) != _digest(clips):
        if _digest(map(_without_split, there)) in written:
            clips = with_splits_of(there, clips)
            new = sum(not clip.split for clip in clips)
            if new and new < len(clips):
                click.echo(
                    f"{path}: {plural(new, 'clip')} in no split; amex manifest split {path} --again draws", err=True
                )
        else:
            there = None
    if there is None:
        click.echo(
            f"{path} was changed since amex wrote it, and stays as it is: --manifest {path} extracts its clips; once "
            "it is deleted it is written anew",
            err=True,
        )
        return list(written)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(clips, path)
    replaced = {_digest(there), _digest(map(_without_split, there))}
    kept = [digest for digest in written if digest not in replaced]
    return list(dict.fromkeys([*kept, _digest(clips), _digest(map(_without_split, clips))]))


def with_splits_of(there: Iterable[Clip], clips: Iterable[Clip]) -> list[Clip]:
    """The clips, in the splits that they have in another manifest; those that it lacks are in none."""
    before: Mapping[str, Clip] = {clip.clip_id: clip for clip in there}
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
    """The sha256 of the manifest of clips."""
    from ..manifests.clip import json_line

    digest = hashlib.sha256()
    for clip in clips:
        digest.update(json_line(clip).encode())
    return digest.hexdigest()


def _beside(options: ExtractOptions, clips: Sequence[Clip]) -> Path | None:
    """Where the manifest belongs that is made for a store."""
    if "://" in str(options.store):
        return None
    if options.dataset not in (None, "folder"):
        which = known(options.dataset, options.root, options.protocol)
        if options.store == which.home.store:
            return default_manifest(which, clips)
    store = Path(os.path.abspath(options.store)) if options.store.name in ("", "..") else options.store
    return store.with_name(f"{store.name.removesuffix('.zarr')}.jsonl")
