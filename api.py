"""The functions that run extraction, training and search: each does in Python what a command of ``amex`` does.

This module may import any package of amex, and none of them imports it. Heavy imports are inside the functions.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .errors import AmexError, check_text, plural

if TYPE_CHECKING:
    from .extract.run import Outcome
    from .features import Rows, Store
    from .manifests import Clip, Problem
    from .train.api import FitResult, TrainedModel
    from .train.config import Config
    from .train.search import Hit

StrPath = str | os.PathLike[str]
T = TypeVar("T")


def extract(
    videos: StrPath | Sequence[StrPath] | Sequence[Clip],
    streams: str | Sequence[str] | Mapping[str, str] | None,
    store: StrPath,
    *,
    folder: StrPath | None = None,
    captions: StrPath | None = None,
    weights: Mapping[str, str] | None = None,
    presets: Mapping[str, str] | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    text_encoder: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    decoder: str = "auto",
    workers: int | None = None,
    cluster: str = "local",
    retry_failed: bool = False,
    quiet: bool = False,
) -> Store:
    """Extract missing features of videos and captions into a store; skip existing ones.

    The same call resumes an interrupted run, extracts new clips and adds streams, as ``amex extract`` does. Worker
    processes decode and encode. They do not import the calling script, so that it needs no
    ``if __name__ == "__main__"``.

    Args:
        videos: the clips, as one of

            - a folder: every video below it is a clip, whose id is the file's path relative to the folder. A
              ``captions.csv`` in the folder adds captions, splits, and clips cut from a video;
            - a list of video files: their ids are their paths relative to ``folder``;
            - a manifest: a file of ``amex manifest``;
            - a list of ``Clip``.
        streams: the streams by name, one or several, as ``amex streams`` lists them: ``"r2plus1d_18"``; or a mapping
            from a name of your own to a network: ``{"motion": "r2plus1d_18", "frames": "clip:my_clip_folder"}``. None:
            a stream that ``search`` can search without training, and one of captions if there are any.
        store: the folder to write or to continue, or an address such as ``s3://BUCKET/NAME``. The list of clips is
            written beside it, as ``my.jsonl`` beside ``my.zarr``; ``search`` finds these clips. A call with a list of
            videos of the same folder adds to it; another call replaces it. Features of earlier clips stay in the store.
        folder: the folder that contains the videos, for lists and manifests. None: the folder that the store was last
            extracted from; for files that are not in it, the folder that they have in common.
        captions: the captions file, if it is not in the folder of the videos.
        weights: by stream: ``default``, a checkpoint file, or ``random:SEED``.
        presets: by stream: the preset that frames are sampled and transformed by.
        settings: by stream: settings as ``amex extract --set`` takes them, such as ``{"r2plus1d_18": {"stride": 8}}``.
        text_encoder: the model of the stream ``text_bert``: ``minilm``, a directory, or a name on the model hub.
        device: ``auto``, ``cpu``, ``cuda`` (all GPUs) or ``cuda:INDEX``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        decoder: ``auto``, or a decoder that ``amex extract --help`` lists.
        workers: processes on this machine; None for one, or one per GPU.
        cluster: ``local``, or the address of a Dask scheduler such as ``tcp://host:8786``.
        retry_failed: also try clips that failed before.
        quiet: show no progress. By default a progress bar, or lines if standard error is not a terminal, are shown.

    Returns:
        The store, open for reading. Failed clips have no rows: ``store[name].failures`` has a reason for each.

    Warns:
        UserWarning: if clips failed, or lines of the manifest or the captions file are not usable.

    Raises:
        AmexError: if the run cannot start, or clips are neither extracted nor failed, as after a full disk.
    """
    from .console import console
    from .extract.encoders import choose_device, choose_precision
    from .extract.limits import DECODERS, PRECISIONS
    from .extract.run import choose_display, choose_on_workers, gpus_of
    from .extract.run import extract as run
    from .extracting import default_streams, manifest_beside, plan_streams, remember
    from .features import open_store
    from .manifests import Clip
    from .storage import open_path

    _check_choice("precision", precision, PRECISIONS)
    _check_choice("decoder", decoder, DECODERS)
    if workers is not None and workers < 1:
        raise AmexError(f"workers must be 1 or more, not {workers}")
    store_path = open_path(store)
    networks = _networks(streams) if streams is not None else None
    items, root, manifest = _clips(videos, folder, captions, store_path, networks)
    clips = [item for item in items if isinstance(item, Clip)]
    log = console(stderr=True)
    say: Callable[[str], None] = (lambda line: None) if quiet else log.print
    if networks is None:
        networks, reason = default_streams(store_path, captions=any(clip.captions for clip in clips))
        say(f"computing {' and '.join(networks)}, {reason}")
    if "://" in cluster:
        if "auto" in (device, precision):
            device, precision = choose_on_workers(cluster, device, precision)
    else:
        device = choose_device(device)
        precision = choose_precision(precision, device)
    plans = plan_streams(
        networks,
        device=device,
        precision=precision,
        weights=_of_streams("weights", weights, networks),
        presets=_of_streams("presets", presets, networks),
        settings=_texts(_of_streams("settings", settings, networks)),
        text_encoder=text_encoder,
    )
    try:
        outcome = run(
            items,
            plans,
            store=store_path,
            videos=root,
            device=device,
            workers=workers or len(gpus_of(device)) or 1,
            display=choose_display(log, quiet=quiet),
            cluster=cluster,
            decoder=decoder,
            retry_failed=retry_failed,
        )
    finally:  # also after an interrupt: what is committed can be searched
        if (store_path / "zarr.json").exists():
            beside = manifest_beside(store_path)
            listed = not isinstance(videos, str | os.PathLike)
            remember(store_path, clips, manifest=manifest, videos=root, beside=beside, say=say, add=listed)
    _report(outcome, store_path)
    return open_store(store_path)


def extract_file(
    path: StrPath,
    stream: str,
    *,
    start: float | None = None,
    end: float | None = None,
    weights: str = "default",
    preset: str | None = None,
    settings: Mapping[str, object] | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Rows:
    """Extract the features of one video, or of one clip of it, in memory.

    Neither a store nor a worker process is used. The numbers equal those that ``extract`` stores, up to the rounding of
    the precision: sums depend on the number of threads.

    Args:
        path: a video file, or its address in an object store or on a web server.
        stream: a network, as ``amex streams`` lists them, or ``KIND:MODEL`` as ``amex extract --stream NAME=`` takes.
        start: seconds on the video's clock; None for its beginning.
        end: seconds, exclusive; None for the end of the video.
        weights: ``default``, a checkpoint file, or ``random:SEED``.
        preset: the preset that frames are sampled and transformed by.
        settings: settings as ``amex extract --set`` takes them, such as ``{"stride": 8}``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:INDEX``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.

    Returns:
        The rows, in the order of time: ``values`` (rows, ...) and ``times`` (rows, 2) in seconds.

    Raises:
        AmexError: naming the file and the reason, if it cannot be decoded; or if the stream is unknown or of text.
    """
    from .extract.encoders import TextPlan, choose_device, choose_precision, is_text
    from .extract.limits import PRECISIONS
    from .extract.run import extract_rows
    from .extracting import plan_streams
    from .manifests import Clip
    from .storage import open_path

    _check_choice("precision", precision, PRECISIONS)
    video = open_path(path)
    try:
        Clip(clip_id=video.name or "?", video=video.name or "?", start=start, end=end)
    except ValueError as error:
        raise AmexError(str(error)) from error
    if is_text(stream):
        raise AmexError(f"{stream} reads captions, not videos: extract them into a store with amex.extract")
    device = choose_device(device)
    (plan,) = plan_streams(
        {stream: stream},
        device=device,
        precision=choose_precision(precision, device),
        weights={stream: weights},
        presets={stream: preset} if preset else {},
        settings=_texts({stream: settings or {}}),
    )
    assert not isinstance(plan, TextPlan)
    rows: Rows = extract_rows(video, plan, device=device, start=start, end=end)
    return rows


def load(run: StrPath, *, text_encoder: str | None = None) -> TrainedModel:
    """Load a trained model onto the CPU.

    Args:
        run: the folder of a run, a checkpoint in it, or a folder that ``amex train export`` wrote. The exported folder
            needs neither store nor manifest. A run that reads a stream of text needs its store, which says how texts
            were encoded.
        text_encoder: the model that made the stream of text: a directory, ``minilm``, or a name on the model hub. None
            tries the models that amex knows. Models that learned their words need none.

    Raises:
        AmexError: if there is no model, or a later version of amex wrote it.
    """
    from .searching import text_features
    from .train.api import load_model

    return load_model(run, text_features(text_encoder))


def fit(
    config: str | Config,
    *,
    store: StrPath,
    manifest: StrPath | None = None,
    work_dir: StrPath,
    settings: str | Iterable[str] = (),
    resume: bool = False,
    strict: bool = False,
    quiet: bool = False,
) -> FitResult:
    """Train a model, as ``amex train`` does. ``load(fitted.best)`` loads it.

    Args:
        config: the name of a model or a configuration, the path of a configuration file, or a ``Config``.
        store: the features.
        manifest: the clips with their captions and splits; None for the manifest that the store was made from.
        work_dir: the folder of the run: checkpoints, logs and figures.
        settings: ``section.key=value``, one or several, applied to a configuration given by name or file.
        resume: continue after the last validation of a run in ``work_dir``.
        strict: raise an error if a clip or caption has no features. By default it is left out, with a line about it.
        quiet: show neither progress nor lines about the data.

    Returns:
        The best checkpoint, its epoch, and its figures on the validation split.

    Raises:
        AmexError: before the first step, if anything is missing or does not fit together.
    """
    from .console import console
    from .features import open_store, read_sources
    from .storage import open_path
    from .train.config import Config, load_config
    from .train.fitting import fit as fit_config

    settings = [settings] if isinstance(settings, str) else list(settings)
    if isinstance(config, Config):
        if settings:
            raise AmexError("settings are for a configuration by name: a Config has its own")
    else:
        config = load_config(config, settings)
    path = open_path(store)
    if manifest is None:
        open_store(path)
        manifest = read_sources(path).manifest
        if manifest is None:
            raise AmexError(f"{path} does not say which manifest it was made from: give a manifest")
    say: Callable[[str], None] = (lambda line: None) if quiet else console(stderr=True).print
    return fit_config(
        config,
        store=path,
        manifest=open_path(manifest),
        work_dir=Path(work_dir),
        resume=resume,
        strict=strict,
        quiet=quiet,
        say=say,
    )


def search(
    path: StrPath,
    query: str,
    *,
    top: int = 10,
    store: StrPath | None = None,
    manifest: StrPath | None = None,
    split: str = "all",
    text_encoder: str | None = None,
    strict: bool = False,
) -> list[Hit]:
    """Find the clips that fit a text best.

    A store is searched without training, by a stream of CLIP or by the class names of a classifier. For many queries
    open the searcher once: ``searcher = amex.searching.open_searcher(Path(path))``, then
    ``searcher.clips_for(query, top)``.

    Args:
        path: a store, the folder of a run of ``amex train``, or a checkpoint in it.
        query: the text.
        top: how many clips to return, at most.
        store: for a run: the store to search; None for the store of the training.
        manifest: the clips to search; None for the manifest of the training, or of the last extraction into a store.
        split: the split of the manifest to search: ``train``, ``val``, ``test`` or ``all``.
        text_encoder: the model that encodes the query; None for the one that the stream was made with.
        strict: raise an error if a clip has no features. By default it is left out.

    Returns:
        The hits, the best first.

    Raises:
        AmexError: if ``path`` is neither a store nor a run, or cannot be searched.
    """
    from .searching import open_searcher
    from .storage import open_path

    if not query.strip():
        raise AmexError("the query has no words")
    try:
        check_text("query", query)
    except ValueError as error:
        raise AmexError(str(error)) from error
    if top < 1:
        raise AmexError(f"top must be 1 or more, not {top}")
    searcher = open_searcher(
        open_path(path),
        store=None if store is None else open_path(store),
        manifest=None if manifest is None else open_path(manifest),
        split=split,
        text_encoder=text_encoder,
        strict=strict,
    )
    return searcher.clips_for(query, top)


def _check_choice(argument: str, value: str, choices: Iterable[str]) -> None:
    """Raise AmexError if a value is none of the choices, before a store records it."""
    if value not in choices:
        raise AmexError(f"unknown {argument} {value!r}: use {', '.join(choices)}")


def _networks(streams: str | Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Return the network of each stream by name; raise AmexError if a name is given twice or there is none."""
    if isinstance(streams, Mapping):
        networks = dict(streams)
    else:
        names = [streams] if isinstance(streams, str) else list(streams)
        networks = {name: name for name in names}
        if len(networks) < len(names):
            raise AmexError(f"streams names one twice: {', '.join(names)}; use a mapping {{NAME: NETWORK}}")
    if not networks:
        raise AmexError("streams is empty: name at least one, or give None for the default")
    return networks


def _of_streams(argument: str, values: Mapping[str, T] | None, networks: Mapping[str, str]) -> Mapping[str, T]:
    """Return ``values``; raise AmexError if one is for a stream that is not extracted."""
    for name in values or {}:
        if name not in networks:
            raise AmexError(f"{argument} names {name!r}, which is no stream of this call: {', '.join(networks)}")
    return values or {}


def _texts(settings: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, str]]:
    """Return settings as the command line has them."""
    return {stream: {key: str(value) for key, value in of.items()} for stream, of in settings.items()}


def _clips(
    videos: StrPath | Sequence[StrPath] | Sequence[Clip],
    folder: StrPath | None,
    captions: StrPath | None,
    store: Path,
    networks: Mapping[str, str] | None,
) -> tuple[list[Clip | Problem], Path | None, Path | None]:
    """Return the clips and the problems of ``videos``, the folder of the videos, and the manifest if there is one."""
    from .extract.encoders import is_text
    from .features import read_sources
    from .manifests import Clip, add_val_split, scan_folder, scan_manifest
    from .manifests.videos import EXTENSIONS
    from .storage import open_path, storage_at

    root = None if folder is None else open_path(folder)
    items: list[Clip | Problem]
    manifest = None
    if isinstance(videos, str | os.PathLike):
        path = open_path(videos)
        if storage_at(path).is_folder():
            if root is not None:
                raise AmexError(f"{path} is the folder of the videos: leave out folder")
            return add_val_split(scan_folder(path, None if captions is None else Path(captions))), path, None
        if path.suffix.lower() in EXTENSIONS:
            return _clips([path], folder, captions, store, networks)
        if not path.exists():
            raise AmexError(f"there is no folder of videos, video or manifest {path}")
        manifest, items = path, list(scan_manifest(path))
    else:
        entries = list(videos)
        files = [each for each in entries if not isinstance(each, Clip)]
        if files and len(files) == len(entries):
            root = root or _folder_of(files, store)
            paths = [open_path(file) for file in files]
            names = [_relative(path, root) for path in paths]
            for path in paths:
                if "://" not in str(path) and not path.exists():
                    raise AmexError(f"there is no video {path}")
            items = [Clip(clip_id=name, video=name) for name in dict.fromkeys(names)]
        elif files:
            raise AmexError(f"videos are all files or all clips: {files[0]} is no Clip")
        else:
            items = [each for each in entries if isinstance(each, Clip)]
    if captions is not None:
        raise AmexError("captions is for a folder of videos: a Clip has its own captions")
    if not items:
        raise AmexError("there are no videos to extract")
    if root is None and (store / "sources.json").exists():
        root = read_sources(store).videos
    if root is None and not (networks and all(map(is_text, networks.values()))):
        raise AmexError("give the folder that the videos are in: folder=...")
    return items, root, manifest


def _folder_of(files: Sequence[StrPath], store: Path) -> Path:
    """Return the folder of the store's videos if the files are in it, else the deepest folder that contains them."""
    from .features import read_sources

    folder = Path(os.path.commonpath([Path(file).absolute().parent for file in files]))
    videos = read_sources(store).videos if (store / "sources.json").exists() else None
    return videos if videos is not None and folder.is_relative_to(videos.absolute()) else folder


def _relative(file: Path, root: Path) -> str:
    """Return the path of a file relative to the folder of the videos; raise AmexError if it is elsewhere."""
    path, base = (file, root) if "://" in str(root) else (file.absolute(), root.absolute())
    try:
        return path.relative_to(base).as_posix()
    except ValueError as error:
        raise AmexError(f"{file} is not below the folder of the videos, {root}") from error


def _report(outcome: Outcome, store: Path) -> None:
    """Warn about failures; raise AmexError if clips are neither extracted nor failed."""
    if outcome.broken:
        part, error = next(iter(outcome.broken.items()))
        raise AmexError(f"{plural(len(outcome.broken), 'part')} of {store} broke, the first {part}: {error}")
    if outcome.absent:
        name, clip = next(iter(outcome.absent.items()))
        raise AmexError(f"stream {name!r} of {store} still lacks clips, the first {clip!r}: call extract again")
    lines = [str(problem) for problem in outcome.problems[:1]]
    if lines:
        lines = [f"{plural(len(outcome.problems), 'line')} skipped, the first {lines[0]}"]
    lines += [
        f"{plural(counts['failed'], 'clip')} failed in {name}, see store[{name!r}].failures"
        for name, counts in outcome.states.items()
        if counts["failed"]
    ]
    for line in lines:
        warnings.warn(f"{store}: {line}", stacklevel=4)
