"""``amex manifest show``, ``stats`` and ``check``: what a manifest holds, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import click

from ...errors import plural, printable
from ..options import json_option
from ..parameters import FOLDER
from .summary import in_one_line, manifest_argument, summarise

LEAKS_NAMED = 3


@click.command("show")
@manifest_argument
@click.option("--limit", default=5, show_default=True, help="Number of clips to print.")
def manifest_show(path: Path, limit: int) -> None:
    """Print a summary of a manifest, and its first clips.

    \b
    amex manifest show my.jsonl --limit 3
    """
    from ...manifests import read_manifest

    clips = read_manifest(path)
    click.echo(f"{path}: {summarise(clips)}")
    for clip in clips[:limit]:
        start = 0.0 if clip.start is None else clip.start
        end = "end" if clip.end is None else f"{clip.end:g}"
        caption = f"  {clip.captions[0]!r}" if clip.captions else ""
        more = f" and {len(clip.captions) - 1} more" if len(clip.captions) > 1 else ""
        click.echo(f"  {printable(clip.clip_id)}  [{start:g}, {end}) of {printable(clip.video)}{caption}{more}")


@click.command("stats")
@manifest_argument
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Also draw histograms of durations, words and captions: a .png, .svg, .pdf or .html file.",
)
@json_option
def manifest_stats(path: Path, out: Path | None, as_json: bool) -> None:
    """Count clips, hours, captions and words, and find leaks.

    A leak is a video or a caption that is in two splits. Captions are compared without case and repeated blanks.

    \b
    amex manifest stats my.jsonl --out my.png
    """
    from ...manifests import read_manifest
    from ...manifests.statistics import statistics

    if out is not None:
        from ...manifests.picture import check_name

        check_name(out)
    counted = statistics(read_manifest(path))
    if out is not None:
        from ...manifests.picture import draw

        draw(counted, path.name, out)
    if as_json:
        return click.echo(json.dumps(counted.as_json(), indent=1))
    click.echo(f"{path}: {in_one_line(counted.splits, counted.videos, counted.captions, counted.carved)}")
    lengths = [f"{counted.hours:,.2f} hours"] if counted.clips > counted.open_ended or not counted.clips else []
    if counted.open_ended:
        lengths.append(f"{plural(counted.open_ended, 'clip')} to the end of the video, of unknown length")
    click.echo(f"  {'; '.join(lengths)}")
    for name, numbers in counted.quantiles().items():
        if numbers:
            values = ", ".join(f"{which} {number:,.4g}" for which, number in numbers.items())
            click.echo(f"  {name.replace('_', ' ')}: {values}")
    for what, leaks in (("video", counted.video_leaks), ("caption", counted.caption_leaks)):
        for leak in leaks:
            count = f"{plural(len(leak.names), what)} in {' and '.join(leak.splits)}"
            named = ", ".join(map(repr, leak.names[:LEAKS_NAMED]))
            more = ", ..." if len(leak.names) > LEAKS_NAMED else ""
            click.echo(printable(f"  leak: {count}: {named}{more}"))
    if out is not None:
        click.echo(f"drawn in {out}")


# What `manifest check` counts of each kind of fault.
WRONG = {"missing": "video", "unreadable": "video", "too_short": "clip", "manifest": "line"}


@click.command("check")
@manifest_argument
@click.option("--videos", required=True, type=FOLDER, help="The folder the videos are in.")
@json_option
def manifest_check(path: Path, videos: Path, as_json: bool) -> None:
    """Find videos that are missing, unreadable or too short.

    A video is too short if it ends before one of its clips. Only headers are read: damage inside a file is found by
    extraction. Exits with 3 if a problem is found.

    \b
    amex manifest check my.jsonl --videos my_videos
    """
    from ...extract.run import check_videos
    from ...manifests import scan_manifest

    checked = check_videos(list(scan_manifest(path)), videos)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(checked), indent=1))
    else:
        counts = []
        for kind, entries in dataclasses.asdict(checked).items():
            if isinstance(entries, dict):
                for name, reason in entries.items():
                    click.echo(printable(f"{kind.replace('_', ' ')}: {name}: {reason}"))
                if entries and kind in WRONG:
                    counts.append(f"{kind.replace('_', ' ')}: {plural(len(entries), WRONG[kind])}")
        click.echo(f"of {plural(checked.videos, 'video')}, {', '.join(counts) or 'nothing is wrong'}")
    sys.exit(3 if checked.bad else 0)
