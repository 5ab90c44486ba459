"""``amex manifest split``, ``filter`` and ``merge``: manifests from manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ...errors import AmexError, plural, printable
from ..options import FILE, POSITIVE, STORAGE_PATH
from .summary import manifest_argument, out_option, summarise

SHARE = click.FloatRange(0, 1, max_open=True)


@click.command("split")
@manifest_argument
@click.option("--val", default=0.1, show_default=True, type=SHARE, help="Share of videos to choose a checkpoint on.")
@click.option("--test", default=0.1, show_default=True, type=SHARE, help="Share of videos to test on.")
@click.option("--seed", default=0, show_default=True, help="Another seed draws other videos.")
@click.option("--again", is_flag=True, help="Replace the splits that the clips are in.")
@click.option("--out", type=FILE, help="The manifest to write.  [default: the same, in place]")
def manifest_split(path: Path, val: float, test: float, seed: int, again: bool, out: Path | None) -> None:
    """Draw train, val and test, all clips of a video together.

    The draw of a video depends on the seed and the video's id alone: everybody gets the same splits, and clips that are
    added later change no other clip's.
    """
    from ...manifests import read_manifest, write_manifest
    from ...manifests.choosing import split_clips

    if not val + test < 1:  # nor is NaN
        raise click.UsageError(f"--val {val} and --test {test} leave nothing for train: they are shares of 1")
    clips, out = split_clips(read_manifest(path), val=val, test=test, seed=seed, again=again), out or path
    write_manifest(clips, out)
    click.echo(f"{out}: {summarise(clips)}")


@click.command("filter")
@manifest_argument
@click.option("--store", type=STORAGE_PATH, help="Keep clips that have features in it.")
@click.option("--stream", "streams", multiple=True, help="In this stream of it; by default in all that are of clips.")
@click.option("--split", "splits", multiple=True, help="Keep clips of this split; may be given again.")
@click.option("--min-seconds", type=POSITIVE, help="Keep clips that are so long. A clip without an end is kept.")
@click.option("--videos", type=STORAGE_PATH, help="Keep clips whose video is in this folder.")
@out_option
def manifest_filter(
    path: Path,
    store: Path | None,
    streams: tuple[str, ...],
    splits: tuple[str, ...],
    min_seconds: float | None,
    videos: Path | None,
    out: Path,
) -> None:
    """Keep the clips that have features, videos or a split.

    Says how many it leaves out, and why: for the first of these conditions that does not hold.
    """
    from ...manifests import read_manifest, write_manifest

    if streams and store is None:
        raise click.UsageError("--stream is a stream of --store: give both")
    if not (store or splits or min_seconds or videos):
        raise click.UsageError("nothing to filter by: give --store, --split, --min-seconds or --videos")
    clips = read_manifest(path)
    reasons: dict[str, str] = {}
    for reasons_of in (
        of_split(clips, splits),
        too_short(clips, min_seconds),
        without_video(clips, videos),
        without_features(clips, store, streams),
    ):
        for clip_id, reason in reasons_of:
            reasons.setdefault(clip_id, reason)
    kept = [clip for clip in clips if clip.clip_id not in reasons]
    for reason, count in Counter(reasons.values()).items():
        click.echo(printable(f"left out: {plural(count, 'clip')} {reason}"))
    if min_seconds and (open_ended := sum(clip.end is None for clip in kept)):
        click.echo(f"kept: {plural(open_ended, 'clip')} to the end of the video, of unknown length")
    if not kept:
        raise AmexError(f"no clip of {path} is left; {out} is not written")
    write_manifest(kept, out)
    click.echo(f"{out}: {summarise(kept)}")


Reasons = Iterator[tuple[str, str]]


def of_split(clips: Sequence[Any], splits: tuple[str, ...]) -> Reasons:
    """The clips of other splits."""
    existing = {clip.split for clip in clips}
    for split in splits:
        if split not in existing:
            listed = ", ".join(sorted(filter(None, existing))) or "none"
            raise click.UsageError(f"no clip is in split {split!r}; there is {listed}")
    for clip in clips:
        if splits and clip.split not in splits:
            yield clip.clip_id, f"in split {clip.split!r}" if clip.split else "in no split"


def too_short(clips: Sequence[Any], min_seconds: float | None) -> Reasons:
    """The clips that are known to be shorter."""
    for clip in clips:
        if min_seconds and clip.end is not None and clip.end - (clip.start or 0.0) < min_seconds:
            yield clip.clip_id, f"shorter than {min_seconds:g} s"


def without_video(clips: Sequence[Any], videos: Path | None) -> Reasons:
    """The clips of which the folder has no file, or of which two could be meant."""
    from ...manifests import VideoError, VideoFinder

    if videos is None:
        return
    finder = VideoFinder(videos)
    absent: dict[str, bool] = {}
    for clip in clips:
        if clip.video not in absent:
            try:
                finder.find(clip.video)
                absent[clip.video] = False
            except VideoError:
                absent[clip.video] = True
        if absent[clip.video]:
            yield clip.clip_id, f"whose video is not in {videos}, or is there twice"


def without_features(clips: Sequence[Any], store: Path | None, streams: tuple[str, ...]) -> Reasons:
    """The clips that have no rows in one of the streams."""
    from ...features import is_of_captions, open_store

    if store is None:
        return
    opened = open_store(store)
    names = streams or [name for name, stream in opened.items() if not is_of_captions(stream.spec)]
    if not names:
        raise click.UsageError(f"{store} has no stream of clips: name one with --stream")
    for name in names:
        stream = opened[name]
        if is_of_captions(stream.spec):
            raise click.UsageError(f"stream {name!r} has features of captions, not of clips")
        for clip, state in zip(clips, stream.states([clip.clip_id for clip in clips]), strict=True):
            if state != "done":
                yield clip.clip_id, f"{state} in {name}"


@click.command("merge")
@click.argument("paths", metavar="MANIFEST...", nargs=-1, required=True, type=FILE)
@out_option
def manifest_merge(paths: tuple[Path, ...], out: Path) -> None:
    """Put manifests together; equal clips count once.

    Clips that have one id and are not the same are refused, by name.
    """
    from ...manifests import read_manifest, write_manifest
    from ...manifests.choosing import merge_clips

    clips, repeated = merge_clips((str(path), read_manifest(path)) for path in paths)
    write_manifest(clips, out)
    if repeated:
        click.echo(f"{plural(repeated, 'clip')} in more than one of them, the same in all")
    click.echo(f"{out}: {summarise(clips)}")
