"""Paths that a command line omits: by the name of a data set, or from the record of an extraction in a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from ..errors import plural
from .options import ExtractOptions

if TYPE_CHECKING:
    from ..manifests import Clip, Dataset, DatasetFolder, Problem


class Known(NamedTuple):
    """A data set that is named on the command line.

    Attributes:
        name: the data set and its protocol, such as ``msrvtt:1k-A``.
        asked: whether the protocol was given, and is not the default.
    """

    name: str
    dataset: Dataset
    protocol: str
    home: DatasetFolder
    asked: bool


def known(text: str, root: Path | None, protocol: str | None = None) -> Known:
    """Return the data set that ``NAME`` or ``NAME:PROTOCOL`` names; raise ManifestError if it is unknown."""
    from ..manifests import DatasetFolder, data_root, named

    dataset, after_colon = named(text)
    if protocol and after_colon and protocol != after_colon:
        raise click.UsageError(f"{text} and --protocol {protocol} are two protocols: give one")
    chosen = dataset.protocol(after_colon or protocol)
    home = DatasetFolder(data_root(root) / dataset.name)
    return Known(f"{dataset.name}:{chosen}", dataset, chosen, home, bool(after_colon or protocol))


def scan(which: Known, annotations: Path | None, val: float | None = None) -> list:
    """Return the clips and problems of a known data set.

    Args:
        annotations: a folder to read. None reads those below the data root, and downloads missing files.
        val: the share of train that becomes val, see ``Dataset.scan``; None for its default.
    """
    if annotations is None:
        annotations = which.home.annotations
        which.dataset.fetch(annotations, which.protocol, say=lambda line: click.echo(line, err=True))
    share = {} if val is None else {"val": val}
    return which.dataset.scan(annotations, which.protocol if which.asked else None, **share)


def default_manifest(which: Known, items: Iterable[Clip | Problem]) -> Path:
    """Return the default path of the manifest of what ``scan`` returned.

    If no protocol was asked for, the kind of the annotation file decides it.
    """
    from ..manifests import Clip

    gallery = next((str(item.extras["protocol"]) for item in items if isinstance(item, Clip)), which.name)
    return which.home.manifest(gallery.partition(":")[2])


def manifest_of(which: Known) -> Path:
    """Return the manifest of a known data set; create it from the annotations if it does not exist."""
    from ..manifests import Clip, write_manifest

    path = which.home.manifest(which.protocol)
    if not path.exists():
        clips = [item for item in scan(which, None) if isinstance(item, Clip)]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(clips, path)
        click.echo(f"{path}: {plural(len(clips), 'clip')} of {which.name}", err=True)
    return path


def store_and_manifest(
    dataset: str | None, root: Path | None, store: Path | None, manifest: Path | None
) -> tuple[Path, Path]:
    """Return the store and the manifest: given, or of a known data set, or the manifest that the store was made from.

    Raises:
        UsageError: listing all that is missing.
    """
    if dataset is not None:
        which = known(dataset, root)
        return store or which.home.store, manifest or manifest_of(which)
    missing = [] if store is not None else ["--store, the features from `amex extract`"]
    if store is not None and manifest is None:
        from ..features import open_store, read_sources

        open_store(store)  # raises an error that explains the problem
        manifest = read_sources(store).manifest
    if manifest is None:
        missing.append("--manifest, the clips with captions and splits")
    if store is None or manifest is None:
        raise click.UsageError(f"missing: {'; '.join(missing)}. Or --dataset NAME, for what `amex extract` made of it")
    return store, manifest


def work_folder(which: str, store: Path, manifest: Path) -> Path:
    """Return the default folder of a training run: ``runs/CONFIG-MANIFEST`` beside the store.

    Raises:
        UsageError: if the store is not on this machine.
    """
    if "://" in str(store):
        raise click.UsageError("missing: --work-dir, since the store is not on this machine")
    name = Path(which.rpartition(":")[2]).stem  # of python:MODULE:CLASS the class
    return store.parent / "runs" / f"{name}-{manifest.stem}"


def videos_of(store: Path, given: Path | None) -> Path | None:
    """Return the given folder of videos, else the folder that the store was made from, if it exists."""
    if given is not None:
        return given
    from ..features import read_sources

    videos = read_sources(store).videos
    return videos if videos is not None and videos.is_dir() else None


def placed(options: ExtractOptions) -> ExtractOptions:
    """Return the options of an extraction with store, videos and data set filled in. Import nothing heavy.

    Raises:
        UsageError: listing all options that are missing or contradict each other.
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
