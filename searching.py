"""Trained runs and stores opened for search: what ``amex search``, ``serve``, ``eval`` and ``amex.search`` share."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .console import progress_bar
from .errors import AmexError
from .storage import open_path, reachable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .features import Store, Stream
    from .manifests import Clip
    from .train.captions import Text
    from .train.checkpoint import Checkpoint
    from .train.coverage import Coverage
    from .train.export import StreamSettings
    from .train.search import Hit
    from .train.zeroshot import TextVectors

# Only every CLASS_NAME_STEP-th of ImageNet's 1,000 class names is encoded: CLIP's text tower is slow, and the names are
# sorted by topic.
CLASS_NAME_STEP = 8


class Searching(Protocol):
    """A searcher: its clips, their store, and the two directions of search.

    Attributes:
        clips: the clips that a search can return.
        store: the store that has their features.
        description: the model and its source in one line, such as ``W/best.pth (amenet)``.
        coverage: how many clips can be found, and why the others cannot.
    """

    store: Store
    description: str
    coverage: Coverage

    @property
    def clips(self) -> Sequence[Clip]: ...

    def clips_for(self, query: str, k: int) -> list[Hit]:
        """Return the ``k`` clips that fit a text best, the best first."""

    def captions_for(self, clip_id: str, k: int) -> list[Hit]:
        """Return the ``k`` captions of the manifest that fit a clip best, the best first."""


class OpenedRun(NamedTuple):
    """A checkpoint with the store, the clips and the texts it is applied to."""

    checkpoint: Checkpoint
    store: Store
    clips: list[Clip]
    text: Text
    manifest: Path


def open_run(
    path: Path, store: Path | None = None, manifest: Path | None = None, *, same_features: bool = False
) -> OpenedRun:
    """Open a checkpoint, and the store and the manifest it is applied to.

    Args:
        path: the folder of a run, or a checkpoint.
        store: None for the store of the training.
        manifest: None for the manifest of the training.
        same_features: accept imported streams whose fingerprints differ from those of the training.

    Raises:
        AmexError: if one of them is missing, or the features are not those of the training.
    """
    from .features import open_store
    from .manifests import read_manifest
    from .train.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    sources = {name: open_path(text) for name, text in checkpoint.sources.items()}
    for name, argument in (("store", store), ("manifest", manifest)):
        if argument is None and not sources[name].exists():
            raise AmexError(f"the {name} of the training run, {sources[name]}, is gone: give another {name}")
    opened, manifest = open_store(store or sources["store"]), manifest or sources["manifest"]
    checkpoint.check_features(opened, imported=same_features)
    if same_features:
        fingerprints = {name: opened[name].fingerprint for name in checkpoint.fingerprints}
        checkpoint = dataclasses.replace(checkpoint, fingerprints=fingerprints)
    return OpenedRun(checkpoint, opened, read_manifest(manifest), checkpoint.text(opened, manifest), manifest)


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
    """Open a searcher of a trained run, or of a store that no model was trained on.

    Args:
        path: the folder of a run, a checkpoint, or a store.
        store: for a run: the store to search; None for the store of the training.
        manifest: the clips to search. None: for a run the manifest of the training, for a store that of its last
            extraction.
        split: the split of the manifest to search: ``train``, ``val``, ``test`` or ``all``.
        index: for a run: the FAISS index factory string, see ``train.search.Searcher``.
        text_encoder: the model that encodes queries; None for the one that the stream was made with, or ``minilm``.
        strict: raise an error if a clip or caption has no features.

    Raises:
        AmexError: if ``path`` is neither a run nor a store, or cannot be searched.
    """
    with reachable(path):
        is_store = (path / "zarr.json").exists() or any(path.glob("*/spec.json"))
        is_run = path.is_file() or (path / "best.pth").exists()
        exists = is_run or path.exists()
    if is_store:
        if store is not None or index != "Flat":
            option = "store" if store is not None else "index"
            raise AmexError(f"{path} is a store: {option!r} applies only to runs of amex train")
        return open_zero_shot(path, manifest, split, text_encoder, strict=strict)
    if not exists:
        raise AmexError(
            f"there is no store or run {path}; make a store with: amex extract FOLDER --store my.zarr; "
            "a run is the --work-dir of amex train"
        )
    if not is_run:
        raise AmexError(f"{path} is neither a checkpoint or a run of amex train, nor a store that amex extract made")
    from .train.search import Searcher
    from .train.selection import of_split

    run = open_run(path, store, manifest)
    clips = of_split(run.clips, split, "the manifest")
    encoder = text_features(text_encoder)
    return Searcher(run.checkpoint, run.store, clips, run.text, encoder, kind=index, strict=strict)


def text_features(
    model: str | None,
) -> Callable[[Stream | StreamSettings, Sequence[str]], list[dict[str, NDArray[Any]]]]:
    """Return a function that encodes new texts with the settings of a stream of text.

    Args:
        model: the model that made the stream: a directory, ``minilm``, or a name on a hub. None tries the models that
            amex knows.
    """

    def encode(stream: Stream | StreamSettings, texts: Sequence[str]) -> list[dict[str, NDArray[Any]]]:
        from .extract.encoders import encode_like

        arrays: list[dict[str, NDArray[Any]]] = encode_like(stream, texts, model)
        return arrays

    return encode


def open_zero_shot(
    path: Path, manifest: Path | None, split: str, text_encoder: str | None, *, strict: bool
) -> Searching:
    """Open a searcher of a store that no model was trained on.

    Raises:
        AmexError: if no stream of the store can be searched.
    """
    from .extract.encoders import NETWORKS
    from .features import open_store
    from .train.selection import of_split
    from .train.zeroshot import ZeroShot

    store = open_store(path)
    stream, encode, description = choose_stream(store, text_encoder)
    names = NETWORKS["efficientnet_lite2"].classes()[::CLASS_NAME_STEP]
    clips = of_split(clips_of(store, stream, manifest), split, "the manifest")
    with progress_bar() as bar:
        task = bar.add_task("reading", total=len(clips))
        return ZeroShot(
            store,
            clips,
            stream,
            encode,
            description=description,
            names=names,
            strict=strict,
            progress=lambda count: bar.advance(task, count),
        )


def choose_stream(store: Store, text_encoder: str | None) -> tuple[Stream, TextVectors, str]:
    """Choose the stream of a store to search without training: CLIP frames before classes, larger before smaller.

    Returns:
        The stream, the encoder of queries, and both in one line.

    Raises:
        AmexError: if there is no such stream, or no encoder for it.
    """
    from .extract.encoders import clip_text_vectors, sentence_vectors
    from .train.zeroshot import is_classified, is_clip_frames

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
    streams = sorted(filter(len, streams), key=len, reverse=True)
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
    names = ", ".join(store) or "none yet"
    raise AmexError(
        f"{store.path} has no stream that can be searched without training (there is {names}): add one with amex "
        f"extract FOLDER --store {store.path} --stream clip_vit_b32, or where that cannot be downloaded --stream "
        "efficientnet_lite2; or train a model with amex train, and search its run"
    )


def clips_of(store: Store, stream: Stream, manifest: Path | None) -> list[Clip]:
    """Return the clips of a manifest, else of the last extraction, else all clips of the stream."""
    from .features import read_sources
    from .manifests import Clip, read_manifest

    path = manifest or read_sources(store.path).manifest
    if path is not None and (manifest or path.exists()):
        return read_manifest(path)
    if path is not None:
        print(f"the manifest {path} is gone: clips are searched without captions; give its new path", file=sys.stderr)
    clips = []
    for clip_id in [*stream, *stream.failures]:
        source = stream.source(clip_id)
        clips.append(Clip(clip_id=clip_id, video=source.video or clip_id, start=source.start, end=source.end))
    return clips
