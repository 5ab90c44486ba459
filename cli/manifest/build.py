"""``amex manifest build``, ``import`` and ``shapes``: manifests of data sets, of lists, and of drawn clips."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import click

from ...console import progress_bar
from ...errors import plural, printable
from ..demo import draw_shapes
from ..options import json_option, root_option
from ..parameters import FILE
from ..places import default_manifest, known, scan
from .summary import in_one_line, out_option, summarise


def dataset_help() -> str:
    from ...manifests import DATASETS

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
    """Refuse NaN, which click's ranges accept."""
    if math.isnan(value):
        raise click.BadParameter("nan is not a number", context, parameter)
    return value


@click.command("build", cls=BuildCommand)
@click.argument("dataset", metavar="NAME[:PROTOCOL]")
@click.option("--annotations", type=FILE, help="See below.  [default: ROOT/NAME/annotations, fetched]")
@click.option(
    "--videos", type=FILE, help="For folder: the folder of the videos; --annotations is the file of captions."
)
@click.option("--protocol", help="The same as NAME:PROTOCOL.")
@root_option
@click.option(
    "--val",
    "share",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 0.5),
    callback=a_number,
    help="If the protocol has only train and test: the share of train's videos that becomes val, which selects the "
    "checkpoint. 0 trains on all of train.",
)
@click.option("--out", type=FILE, help="The manifest to write, JSON lines.  [default: ROOT/NAME/PROTOCOL.jsonl]")
def manifest_build(
    dataset: str,
    annotations: Path | None,
    videos: Path | None,
    protocol: str | None,
    root: Path | None,
    share: float,
    out: Path | None,
) -> None:
    """Create the manifest of a data set from its annotations.

    Exits with 3 if clips are left out.

    \b
    amex manifest build folder --videos my_videos --out mine.jsonl
    amex manifest build msrvtt:7k --annotations msrvtt_lists --out msrvtt.jsonl
    """
    from ...manifests import Clip, Problem, write_manifest

    if dataset == "folder":
        items = own_videos(annotations, videos, protocol, share, out)
    else:
        if videos is not None:
            raise click.UsageError("--videos is for folder: other data sets name their videos in their annotations")
        which = known(dataset, root, protocol)
        items = scan(which, annotations, share)
        out = out or default_manifest(which, items)
    clips = [item for item in items if isinstance(item, Clip)]
    write_manifest(clips, out)
    click.echo(f"{out}: {summarise(clips)}")
    if without := sum(not clip.captions for clip in clips):
        click.echo(f"{plural(without, 'clip')} without captions: enough to extract from, not to train on", err=True)
    problems = [item for item in items if isinstance(item, Problem)]
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
    sys.exit(3 if problems else 0)


def own_videos(
    annotations: Path | None, videos: Path | None, protocol: str | None, share: float, out: Path | None
) -> list[Any]:
    """Return the clips of a folder of videos, with the captions of the annotations."""
    from ...manifests import DATASETS, add_val_split, scan_folder

    folder = DATASETS["folder"]
    folder.protocol(protocol)
    missing = [flag for flag, given in (("--videos", videos or annotations), ("--out", out)) if given is None]
    if missing:
        raise click.UsageError(f"folder needs {' and '.join(missing)}")
    if videos is None:
        return folder.scan(annotations, val=share)
    return add_val_split(scan_folder(videos, annotations), share)


@click.command("shapes")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write to.")
@click.option("--clips", default=200, show_default=True, type=click.IntRange(min=1), help="Number of clips.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Another seed draws other clips."
)
@click.option("--size", default=160, show_default=True, help="Width and height in pixels.")
@click.option("--train-twins", is_flag=True, help="Also draw training pairs with exchanged roles, as in the demo.")
def manifest_shapes(out: Path, clips: int, seed: int, size: int, train_twins: bool) -> None:
    """Draw the Shapes data set: short videos of moving shapes.

    Writes videos of shapes that move, push, follow and orbit, and their manifest. Of ten clips, seven are for training,
    one for validation and two for testing. Most test clips have a twin with the same objects in exchanged roles. Seeds
    1000 and 2000 are the training data of amex's own small networks.

    \b
    amex manifest shapes --out shapes --clips 200
    """
    from ...manifests import read_manifest

    path = draw_shapes(out, clips=clips, seed=seed, size=size, train_twins=train_twins)
    click.echo(f"{path}: {summarise(read_manifest(path))}")


class Columns(click.ParamType):
    """``MEANING=COLUMN,...`` as a dictionary."""

    name = "meaning=column,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        if isinstance(value, dict):
            return value
        pairs = [item.partition("=") for item in value.split(",")]
        for meaning, _, column in pairs:
            if not meaning.strip() or not column.strip():
                self.fail(f"expected MEANING=COLUMN,... as in video=url,caption=text, got {value!r}", param, ctx)
        return {meaning.strip(): column.strip() for meaning, _, column in pairs}


@click.command("import")
@click.argument("path", metavar="LIST", type=FILE)
@click.option(
    "--columns",
    type=Columns(),
    default={},
    help="The columns by meaning, if they have unusual names: video=url,caption=text,start=begin,end=stop,times=pairs,"
    "split=fold,clip_id=id.",
)
@out_option
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(0), help="Maximum number of bad rows to print."
)
@json_option
def manifest_import(path: Path, columns: dict[str, str], out: Path, limit: int, as_json: bool) -> None:
    """Create a manifest from a list: csv, tsv, JSON or parquet.

    Times are seconds or h:mm:ss, in two columns or in one column of [start, end]. A row with lists of times and
    captions becomes one clip for each entry. Rows with the same video and times are captions of one clip. A video is an
    id, a path or an address: of a YouTube address the id is used, of other addresses the file name. Exits with 3 if
    rows are left out.

    \b
    amex manifest import panda70m_training_2m.csv --out panda.jsonl
    amex manifest import mine.csv --columns video=url,caption=text,start=begin,end=stop --out mine.jsonl
    """
    from ...manifests import Problem
    from ...manifests.lists import choose_columns, import_list

    table, chosen = choose_columns(path, columns)
    read = ", ".join(
        f"{meaning} is {column}{'' if meaning in columns else ' (guessed)'}" for meaning, column in chosen.items()
    )
    unused = [name for name in table.columns if name and name not in chosen.values()]
    click.echo(printable(f"{read}; not used: {', '.join(unused) or 'none'}"), err=True)
    problems: list[str] = []

    def report(problem: Problem) -> None:
        if len(problems) < limit:
            problems.append(str(problem))
            click.echo(f"left out: {problem}", err=True)

    with progress_bar() as bar:
        task = bar.add_task("reading", total=None)

        def advance(rows: int) -> None:
            bar.update(task, description=plural(rows, "row"))

        result = import_list(table, chosen, out, report=report, advance=advance)
    if as_json:
        record = vars(result) | {"unused": unused, "first_problems": problems}
        click.echo(json.dumps(record, indent=1))
    else:
        click.echo(f"{out}: {in_one_line(result.splits, result.videos, result.captions, {})}")
        for kind, what in (("youtube", "the id in an address of YouTube"), ("url", "the file name in an address")):
            if count := result.named_by[kind]:
                click.echo(f"  {plural(count, 'row')} named the video by {what}")
        if result.problems:
            click.echo(f"  left out: {result.problems:,} of {plural(result.rows, 'row')}, or parts of them", err=True)
    sys.exit(3 if result.problems else 0)
