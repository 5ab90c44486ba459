"""Where things are that a command line leaves out: by the name of a data set, or from what a store was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from .options import ExtractOptions

if TYPE_CHECKING:
    from ..manifests import Clip, Dataset, Home, Problem


class Known(NamedTuple):
    """A data set that is named on the command line.

    Attributes:
        name: ``msrvtt:1k-A``.
        asked: whether the protocol is named too, and not the default.
    """

    name: str
    dataset: Dataset
    protocol: str
    home: Home
    asked: bool


def known(text: str, root: Path | None, protocol: str | None = None) -> Known:
    """What ``NAME`` or ``NAME:PROTOCOL`` means; raises ManifestError for what is not known."""
    from ..manifests import Home, data_root, named

    dataset, after_colon = named(text)
    if protocol and after_colon and protocol != after_colon:
        raise click.UsageError(f"{text} and --protocol {protocol} are two protocols: give one")
    chosen = dataset.protocol(after_colon or protocol)
    home = Home(data_root(root) / dataset.name)
    return Known(f"{dataset.name}:{chosen}", dataset, chosen, home, bool(after_colon or protocol))


def scan(which: Known, annotations: Path | None, val: float | None = None) -> list:
    """Clips and problems of a known data set.

    Args:
        annotations: as of ``Dataset.scan``, and only read; None for those below the data root, of which missing files
            are fetched.
        val: as of ``Dataset.scan``; None for its default.
    """
    if annotations is None:
        annotations = which.home.annotations
        which.dataset.fetch(annotations, which.protocol, say=lambda line: click.echo(line, err=True))
    share = {} if val is None else {"val": val}
    return which.dataset.scan(annotations, which.protocol if which.asked else None, **share)


def default_manifest(which: Known, items: Iterable[Clip | Problem]) -> Path:
    """Where the manifest of what ``scan`` returned is kept.

    One file of annotations tells by its kind which protocol it is of, where none is asked for.
    """
    from ..manifests import Clip

    gallery = next((str(item.extras["protocol"]) for item in items if isinstance(item, Clip)), which.name)
    return which.home.manifest(gallery.partition(":")[2])


def manifest_of(which: Known) -> Path:
    """The manifest of a known data set, made from its annotations if it is not there."""
    from ..manifests import Clip, write_manifest

    path = which.home.manifest(which.protocol)
    if not path.exists():
        clips = [item for item in scan(which, None) if isinstance(item, Clip)]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(clips, path)
        click.echo(f"{path}: {len(clips):,} clips of {which.name}", err=True)
    return path


def store_and_manifest(
    dataset: str | None, root: Path | None, store: Path | None, manifest: Path | None
) -> tuple[Path, Path]:
    """What to train on: what is given, else a known data set's, else the manifest that the store was made from.

    Raises:
        UsageError: listing all that is missing.
    """
    if dataset is not None:
        which = known(dataset, root)
        return store or which.home.store, manifest or manifest_of(which)
    missing = [] if store is not None else ["--store, the features from `amex extract`"]
    if store is not None and manifest is None:
        from ..features import open_store, read_sources

        open_store(store)  # says what is wrong with it
        manifest = read_sources(store).manifest
    if manifest is None:
        missing.append("--manifest, the clips with captions and splits")
    if store is None or manifest is None:
        raise click.UsageError(f"missing: {'; '.join(missing)}. Or --dataset NAME, for what `amex extract` made of it")
    return store, manifest


def work_folder(which: str, store: Path, manifest: Path) -> Path:
    """Where a training run goes that is given no folder: ``runs/CONFIG-MANIFEST`` beside the store.

    Raises:
        UsageError: for a store that is not on this machine.
    """
    if "://" in str(store):
        raise click.UsageError("missing: --work-dir, since the store is not on this machine")
    return store.parent / "runs" / f"{Path(which).stem}-{manifest.stem}"


def videos_of(store: Path, given: Path | None) -> Path | None:
    """The folder of the videos: what is given, else the one that the store was made from, if it is there."""
    if given is not None:
        return given
    from ..features import read_sources

    videos = read_sources(store).videos
    return videos if videos is not None and videos.is_dir() else None


def placed(options: ExtractOptions) -> ExtractOptions:
    """The options of an extraction with store, videos and data set filled in; nothing heavy is imported for it.

    Raises:
        UsageError: listing all that is missing or contradicts itself.
    """
    dataset, videos, store = options.dataset, options.videos, options.store
    problems = []
    if options.folder is not None:
        if dataset not in (None, "folder") or options.manifest_path is not None:
            problems.append("give a FOLDER of videos, --dataset or --manifest, not two of them")
        if videos not in (None, options.folder):
            problems.append(f"the videos are in FOLDER ({options.folder}), or in --videos ({videos}), not in both")
        dataset, videos = "folder", options.folder
    elif dataset is not None and options.manifest_path is not None:
        problems.append("give either --manifest or --dataset")
    elif dataset is None and options.manifest_path is None:
        problems.append("give the clips: a FOLDER of videos, --dataset NAME, or --manifest FILE")
    which = known(dataset, options.root, options.protocol) if dataset not in (None, "folder") else None
    if which is not None:
        store = store or which.home.store
        videos = videos or (which.home.videos if which.home.videos.is_dir() else None)
    if store is None:
        problems.append("give --store, where the features go")
    elif videos is None and dataset != "folder":
        videos = videos_of(store, None)
    if dataset == "folder" and videos is None:
        problems.append("--dataset folder needs --videos")
    elif videos is None and (which or options.manifest_path) and not _text_alone(options):
        where = f"put the videos into {which.home.videos} (amex datasets show {which.name}), or " if which else ""
        problems.append(f"{where}give --videos: only streams of text need none")
    if problems:
        raise click.UsageError("; ".join(problems))
    assert store is not None
    return dataclasses.replace(options, dataset=dataset, videos=videos, store=store)


def _text_alone(options: ExtractOptions) -> bool:
    from ..extract.encoders import is_text

    return bool(options.streams) and not options.recipes and all(is_text(network) for _, network in options.streams)
