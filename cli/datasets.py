"""``amex datasets``: known data sets, their protocols, and their files on this disk."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import PAGE_WIDTH, console, progress_bar
from ..errors import plural
from .options import json_option, root_option
from .places import Known, known, scan

if TYPE_CHECKING:
    from ..manifests import Clip, Protocol


@click.group(invoke_without_command=True)
@click.pass_context
def datasets(ctx: click.Context) -> None:
    """List known data sets, and their files on this disk.

    A protocol is one published way to use a data set: a training split, and a gallery that is searched. Write
    NAME:PROTOCOL for any option that takes a data set; the first protocol of a data set is its default.

    \b
    amex datasets
    amex datasets show msrvtt:1k-A
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(datasets_ls, as_json=False)


@datasets.command("ls")
@json_option
def datasets_ls(as_json: bool) -> None:
    """List data sets and protocols with their counts."""
    from ..manifests import DATASETS

    if as_json:
        listed = {
            f"{dataset.name}:{name}": protocol_record(protocol)
            for dataset in DATASETS.values()
            for name, protocol in dataset.protocols.items()
        }
        click.echo(json.dumps(listed, indent=1))
        return
    width = min(console().width, PAGE_WIDTH)
    click.echo(f"{'NAME:PROTOCOL':30}" + "".join(f"{split:>9}" for split in SPLITS) + "  counts")
    for dataset in DATASETS.values():
        for name, protocol in dataset.protocols.items():
            counts = (f"{protocol.clips[split]:,}" if split in protocol.clips else "" for split in SPLITS)
            cells = "".join(f"{count:>9}" for count in counts)
            click.echo(f"{f'{dataset.name}:{name}':30}{cells}  {protocol.known}")
            click.echo(textwrap.fill(protocol.help, width, initial_indent="    ", subsequent_indent="    "))
    click.echo("Clips by split. A count is from the published files, from a publication, or unchecked.")
    click.echo("`amex datasets show NAME` says how to get a data set, and what of it is on this disk.")


SPLITS = ("train", "val", "test")


def protocol_record(protocol: Protocol) -> dict[str, Any]:
    return {
        "help": protocol.help,
        "clips": dict(protocol.clips),
        "captions": dict(protocol.captions),
        "counts": protocol.known,
        "source": protocol.source,
        "files": [{"name": file.name, "url": file.url, "sha256": file.sha256} for file in protocol.files],
    }


@datasets.command("show")
@click.argument("name", metavar="NAME[:PROTOCOL]")
@root_option
@click.option(
    "--missing",
    type=click.Path(path_type=Path),
    help="The file for the ids of missing videos, one a line.  [default: missing.txt in ROOT/NAME]",
)
@json_option
def datasets_show(name: str, root: Path | None, missing: Path | None, as_json: bool) -> None:
    """Describe a data set, how to get it, and what is here.

    Searches ROOT/NAME/videos for the videos and reads their headers. The ids of missing videos are written to a file,
    for a downloader. Exits with 3 if videos are missing or unreadable.

    \b
    amex datasets show youcook2
    amex datasets show msrvtt:full --root /data --missing missing.txt
    """
    which = known(name, root)
    annotations = {file.name: file for file in which.dataset.protocols[which.protocol].files}
    missing_files = [name for name in annotations if _lacks(which, name)]
    on_this_disk = {} if missing_files else on_disk(which, missing)
    if as_json:
        record = {"name": which.name, "title": which.dataset.title, "videos": which.dataset.videos}
        record |= protocol_record(which.dataset.protocols[which.protocol])
        click.echo(json.dumps(record | {"lacking": missing_files} | on_this_disk, indent=1))
    else:
        print_dataset(which, missing_files, on_this_disk)
    raise SystemExit(3 if on_this_disk.get("missing") or on_this_disk.get("unreadable") else 0)


def _lacks(which: Known, name: str) -> bool:
    from ..manifests import Annotations

    return Annotations(which.home.annotations).find(name) is None


def on_disk(which: Known, missing: Path | None) -> dict[str, Any]:
    """Count clips, videos and hours of a data set on this disk; write the ids of missing videos to a file."""
    from ..extract.run import check_videos
    from ..manifests import Clip, Problem
    from ..storage import write_text

    items = scan(which, which.home.annotations)
    clips = [item for item in items if isinstance(item, Clip)]
    counted = count(clips)
    counts: dict[str, Any] = {"clips": counted, "problems": sum(isinstance(item, Problem) for item in items)}
    if not which.home.videos.is_dir():
        return counts
    with progress_bar() as bar:
        task = bar.add_task("reading headers", total=len({clip.video for clip in clips}))
        checked = check_videos(clips, which.home.videos, progress=lambda: bar.advance(task))
    lost = {*checked.missing, *checked.unreadable}
    counts |= {
        "videos_named": checked.videos,
        "videos_found": checked.videos - len(checked.missing),
        "missing": len(checked.missing),
        "unreadable": len(checked.unreadable),
        "hours": checked.seconds / 3600,
        "too_short": len(checked.too_short),
        "clips_lost": count([clip for clip in clips if clip.video in lost or clip.clip_id in checked.too_short]),
    }
    if checked.missing:
        listed = missing or which.home.folder / "missing.txt"
        write_text(listed, "".join(f"{video}\n" for video in checked.missing))
        counts["missing_file"] = str(listed)
    return counts


def count(clips: Sequence[Clip]) -> dict[str, int]:
    """Count clips by split."""
    return dict(Counter(clip.split or "no split" for clip in clips))


def print_dataset(which: Known, lacking: Sequence[str], here: dict[str, Any]) -> None:
    """Print what a data set is, what of it is on this disk, and what to do next."""
    from ..manifests import Annotations

    dataset, protocol, home = which.dataset, which.dataset.protocols[which.protocol], which.home
    click.echo(f"{which.name}: {dataset.title}")
    others = [name for name in dataset.protocols if name != which.protocol]
    click.echo(f"  protocol: {protocol.help}; others: {', '.join(others) or 'none'}")
    source = f" ({protocol.source})" if protocol.source else ""
    click.echo(f"  published: clips: {by_split(protocol.clips)}; {protocol.known}{source}")
    click.echo(f"  videos: {dataset.videos}")
    click.echo(f"annotations, in {home.annotations}:")
    for file in (*protocol.files, *protocol.optional):
        present = Annotations(home.annotations).find(file.name)
        how = "fetched when it is needed, from" if file.sha256 else "to be downloaded by hand, from"
        optional = "" if file in protocol.files else "optional, "
        click.echo(f"  {file.name}: {'there' if present else f'{optional}{how} {file.where}'}")
    if lacking:
        click.echo(f"Next: amex manifest build {which.name} fetches what it can, and says what to do about the rest")
        return
    click.echo(f"clips: {by_split(here['clips'])}" + (f"; {here['problems']:,} left out" if here["problems"] else ""))
    if "videos_found" not in here:
        click.echo(f"videos: there is no folder {home.videos} yet")
        return
    click.echo(
        f"videos, in {home.videos}: {here['videos_found']:,} of {plural(here['videos_named'], 'video')}, "
        f"{here['hours']:,.1f} hours; {here['missing']:,} missing, {here['unreadable']:,} unreadable"
    )
    if lost := here["clips_lost"]:
        click.echo(f"clips lost with them: {by_split(lost)} ({here['too_short']:,} end after their video)")
    if "missing_file" in here:
        click.echo(f"missing videos are listed in {here['missing_file']}")
    click.echo(f"Next: amex extract --dataset {which.name} --dry-run")


def by_split(counts: Any) -> str:
    return ", ".join(f"{number:,} {split}" for split, number in counts.items())
