"""One searcher for all that can be searched, for ``amex search`` and others that show what is found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from ..console import progress_bar
from ..errors import AmexError
from ..storage import reachable
from .trained import load

if TYPE_CHECKING:
    from ..features import Store, Stream
    from ..manifests import Clip
    from ..train.coverage import Coverage
    from ..train.search import Hit, TextFeatures
    from ..train.zeroshot import TextVectors


class Searching(Protocol):
    """What is searched, and what with.

    Attributes:
        clips: those that can be found.
        store: where their features are.
        says: what is searched with, in a line, such as ``W/best.pth (amenet)``.
        coverage: how many clips can be found, and why others cannot.
    """

    clips: Sequence[Clip]
    store: Store
    says: str
    coverage: Coverage

    def clips_for(self, query: str, k: int) -> list[Hit]:
        """The ``k`` clips that fit a text best."""

    def captions_for(self, clip_id: str, k: int) -> list[Hit]:
        """The ``k`` captions of the manifest that fit a clip best."""


def open_searcher(
    path: Path,
    *,
    store: Path | None = None,
    manifest: Path | None = None,
    split: str = "all",
    index: str = "Flat",
    text_encoder: str | None = None,
    strict: bool = False,
) -> Searching:
    """A searcher of a trained model, or of a store with no training.

    Args:
        path: the folder of a run, a checkpoint, or a store.
        store: of a run, None for that of the training.
        manifest: None for that of the training, or of a store for that of the last extraction into it.
        split: which of the manifest's clips to search.
        index: of a run the kind of index, as of ``Searcher``.
        text_encoder: encodes a query; None for what the store was made with, or for ``minilm``.
        strict: clips and captions without features are an error.

    Raises:
        AmexError: if it is neither, or cannot be searched.
    """
    with reachable(path):
        is_store = (path / "zarr.json").exists() or any(path.glob("*/spec.json"))
        is_run = path.is_file() or (path / "best.pth").exists()
    if is_store:
        if store is not None or index != "Flat":
            option = "--store" if store is not None else "--index"
            raise AmexError(f"{path} is a store: {option} is for runs of amex train")
        return open_zero_shot(path, manifest, split, text_encoder, strict=strict)
    if not is_run:
        raise AmexError(f"{path} is neither a checkpoint or a run of amex train, nor a store that amex extract made")
    from ..train.search import Searcher
    from ..train.selection import of_split

    used = load(path, store, manifest)
    clips = of_split(used.clips, split, "the manifest")
    features = text_features(text_encoder)
    return Searcher(used.checkpoint, used.store, clips, used.text, features, kind=index, strict=strict)


def text_features(model: str | None) -> TextFeatures:
    """What makes token features of texts that the store does not hold, as those of the stream were made."""

    def made(stream: Stream, texts: Sequence[str]) -> list[Any]:
        from ..extract.encoders import encode_like

        return encode_like(stream, texts, model)

    return made


def open_zero_shot(
    path: Path, manifest: Path | None, split: str, text_encoder: str | None, *, strict: bool
) -> Searching:
    """A searcher of a store with no training. Raises AmexError."""
    from ..extract.encoders import NETWORKS
    from ..features import open_store
    from ..train.selection import of_split
    from ..train.zeroshot import ZeroShot

    store = open_store(path)
    stream, encode, says = choose_stream(store, text_encoder)
    names = NETWORKS["efficientnet_lite2"].classes()[::EVERY]
    clips = of_split(clips_of(store, stream, manifest), split, "the manifest")
    with progress_bar() as bar:
        task = bar.add_task("reading", total=len(clips))
        return ZeroShot(
            store,
            clips,
            stream,
            encode,
            says=says,
            names=names,
            strict=strict,
            progress=lambda count: bar.advance(task, count),
        )


# CLIP's text tower takes its time: of ImageNet's 1,000 names, which are sorted by what they are of, it reads so many.
EVERY = 8


def choose_stream(store: Store, text_encoder: str | None) -> tuple[Stream, TextVectors, str]:
    """The stream of a store to search, what encodes texts for it, and both in a line; CLIP before classes.

    Raises:
        AmexError: if there is none, or nothing that encodes texts for it.
    """
    from ..extract.encoders import clip_text_vectors, sentence_vectors
    from ..train.zeroshot import is_classified, is_clip_frames

    streams: list[Stream] = []
    reasons: list[str] = []
    for name in store:
        try:
            streams.append(store[name])
        except AmexError as error:  # damage in one stream does not hide another
            reasons.append(str(error))
    for stream in streams:
        if not len(stream) and (is_clip_frames(stream) or is_classified(stream)):
            reasons.append(f"stream {stream.name!r} holds no clip (amex features failures {store.path} says why)")
    streams = sorted(filter(len, streams), key=len, reverse=True)  # of several the one in which most can be found
    for stream in filter(is_clip_frames, streams):
        try:
            return stream, clip_text_vectors(stream, text_encoder), f"CLIP frames of {stream.name}, no training"
        except AmexError as error:
            reasons.append(str(error))
    for stream in filter(is_classified, streams):
        model = text_encoder or "minilm"
        try:
            return stream, sentence_vectors(model), f"class names of {stream.name} ({model}), no training"
        except AmexError as error:
            reasons.append(str(error))
    if reasons:
        raise AmexError(f"{store.path} cannot be searched without training: {'; '.join(reasons)}")
    there = ", ".join(store) or "none yet"
    raise AmexError(
        f"{store.path} has no stream that can be searched without training (there is {there}): add one with amex "
        f"extract FOLDER --store {store.path} --stream clip_vit_b32, or where that cannot be downloaded --stream "
        "efficientnet_lite2; or train a model with amex train, and search its run"
    )


def clips_of(store: Store, stream: Stream, manifest: Path | None) -> list[Clip]:
    """The clips of a manifest; without one, those of the last extraction, or else all that the stream has."""
    from ..features import read_sources
    from ..manifests import Clip, read_manifest

    known = manifest or read_sources(store.path).manifest
    if manifest or (known and known.exists()):
        return read_manifest(known)
    if known:
        click.echo(
            f"the manifest {known} is gone: clips are searched without captions; name it with --manifest", err=True
        )
    clips = []
    for clip_id in [*stream, *stream.failures]:
        source = stream.source(clip_id)
        clips.append(Clip(clip_id=clip_id, video=source.video or clip_id, start=source.start, end=source.end))
    return clips
