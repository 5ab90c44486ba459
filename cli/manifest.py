"""``amex manifest``: which clips, of which videos, with which captions and splits."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import click

from ..console import progress_bar
from ..errors import AmexError, plural, printable
from .demo import draw_shapes
from .options import json_option


@click.group()
def manifest() -> None:
    """Make and check manifests: clips, captions and splits."""


def dataset_help() -> str:
    from ..manifests import DATASETS

    lines = []
    for name, dataset in DATASETS.items():
        protocols = f" Protocols: {', '.join(dataset.protocols)}." if dataset.protocols else ""
        lines.append(f"{name}: {dataset.takes}.{protocols}")
    return "\n\n".join(lines)


class BuildCommand(click.Command):
    """A command whose help lists the data sets."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Data sets and what --annotations takes"):
            formatter.write_text(dataset_help())


def a_number(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """Refuses nan, which no range of click's does."""
    if math.isnan(value):
        raise click.BadParameter("nan is not a number", context, parameter)
    return value


@manifest.command("build", cls=BuildCommand)
@click.argument("dataset")
@click.option("--annotations", required=True, type=click.Path(path_type=Path), help="See below.")
@click.option("--protocol", help="Which published split, where there are several; the first one listed otherwise.")
@click.option(
    "--val",
    "share",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0, 50),
    callback=a_number,
    help="Where the protocol has train and test alone: percent of train's videos that become val, which chooses the "
    "checkpoint. 0 trains on all of train.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The manifest to write, JSON lines.")
def manifest_build(dataset: str, annotations: Path, protocol: str | None, share: float, out: Path) -> None:
    """Write the manifest of DATASET from its annotation files. Exits with 3 if it leaves anything out."""
    from ..manifests import Clip, Problem, write_manifest
    from ..manifests import dataset as named

    items = named(dataset).scan(annotations, protocol, val=share / 100)
    clips = [item for item in items if isinstance(item, Clip)]
    write_manifest(clips, out)
    click.echo(f"{out}: {summarise(clips)}")
    without = sum(not clip.captions for clip in clips)
    if without:
        click.echo(f"{without} clips have no captions: enough to extract from, not to train on", err=True)
    problems = [item for item in items if isinstance(item, Problem)]
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
    sys.exit(3 if problems else 0)


@manifest.command("shapes")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write to.")
@click.option("--clips", default=200, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="What they show.")
@click.option("--size", default=160, show_default=True, help="Pixels, both sides.")
def manifest_shapes(out: Path, clips: int, seed: int, size: int) -> None:
    """Draw the embedded data set of moving shapes.

    Short videos of shapes that move, push, follow and orbit, and their manifest. Of ten clips seven are for
    training, one for validation and two for testing; most test pairs show the same objects with the roles
    exchanged. Seeds 1000 and 2000 are the ones that amex's own small networks were made with.
    """
    from ..manifests import read_manifest

    path = draw_shapes(out, clips=clips, seed=seed, size=size)
    click.echo(f"{path}: {summarise(read_manifest(path))}")


@manifest.command("show")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--limit", default=5, show_default=True, help="How many clips to print.")
def manifest_show(path: Path, limit: int) -> None:
    """Print what a manifest holds, and its first clips."""
    from ..manifests import read_manifest

    clips = read_manifest(path)
    click.echo(f"{path}: {summarise(clips)}")
    for clip in clips[:limit]:
        start = 0.0 if clip.start is None else clip.start
        end = "end" if clip.end is None else f"{clip.end:g}"
        caption = f"  {clip.captions[0]!r}" if clip.captions else ""
        more = f" and {len(clip.captions) - 1} more" if len(clip.captions) > 1 else ""
        click.echo(f"  {printable(clip.clip_id)}  [{start:g}, {end}) of {printable(clip.video)}{caption}{more}")


@manifest.command("parse")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--parser",
    "which",
    default="rules",
    show_default=True,
    help="rules: amex's own, offline. spacy:MODEL: the dependencies of an installed spaCy model, as en_core_web_sm.",
)
@click.option(
    "--official",
    type=click.Path(path_type=Path),
    help="Instead of parsing take the graphs of HGR's sent2rolegraph.augment.json.",
)
def manifest_parse(path: Path, which: str, official: Path | None) -> None:
    """Make the role graphs of captions, for HGR and MCSAN.

    They are kept beside the manifest. A graph says which words are verbs, and which phrases are their arguments, in
    which role. What is there already by the same parser is kept.
    """
    from .. import language
    from ..manifests import read_manifest

    clips = read_manifest(path)
    captions = list(dict.fromkeys(caption for clip in clips for caption in clip.captions))
    target = language.graphs_path(path)
    if official is not None:
        graphs = language.read_graphs(official)
        if absent := [caption for caption in captions if caption not in graphs.graphs]:
            raise AmexError(f"{official} has no graph of {len(absent)} captions, the first {absent[0]!r}")
    else:
        known = language.read_graphs(target) if target.exists() else None
        made_by, parse = language.role_parser(which)
        with progress_bar() as bar:
            task = bar.add_task("parsing", total=len(captions))
            graphs = language.complete_graphs(captions, known, made_by, parse, lambda count: bar.advance(task, count))
    language.write_graphs(graphs, target)
    click.echo(f"{target}: role graphs of {len(graphs.graphs):,} captions by {graphs.parser}")


# What `manifest check` counts of each kind of fault.
WRONG = {"missing": "video", "unreadable": "video", "too_short": "clip", "manifest": "line"}


@manifest.command("check")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--videos", required=True, type=click.Path(path_type=Path), help="The folder the videos are in.")
@json_option
def manifest_check(path: Path, videos: Path, as_json: bool) -> None:
    """Say which videos are missing, unreadable or too short.

    Too short is a video that ends before a clip of it. Reads headers only: damage inside a file shows when it is
    extracted. Exits with 3 if anything is wrong.
    """
    from ..extract.run import check_videos
    from ..manifests import scan_manifest

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


def summarise(clips: list) -> str:
    splits: dict[str, int] = {}
    for clip in clips:
        splits[clip.split or "no split"] = splits.get(clip.split or "no split", 0) + 1
    counts = ", ".join(f"{count:,} {name}" for name, count in splits.items())
    videos = len({clip.video for clip in clips})
    captions = sum(len(clip.captions) for clip in clips)
    carved = {str(clip.extras["carved"]): clip.split for clip in clips if "carved" in clip.extras}
    made = "".join(f"; {split} is carved from train: {how}" for how, split in carved.items())
    return f"{len(clips):,} clips of {videos:,} videos ({counts}), {captions:,} captions{made}"
