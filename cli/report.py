"""``amex report``: a page about a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console import progress_bar
from ..errors import AmexError
from ..searching import open_run
from .parameters import CHECKPOINT
from .trained import frames_at, manifest_option, store_option, strict_option, thumbnails, videos_option

if TYPE_CHECKING:
    from ..train.report import Run


@click.command()
@click.argument("work_dir", type=CHECKPOINT)
@click.argument("other", type=CHECKPOINT, required=False)
@click.option("--split", default="test", show_default=True, help="The split to show.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to write.  [default: report in WORK_DIR]")
@click.option(
    "--pictures",
    type=click.IntRange(0),
    default=500,
    show_default=True,
    help="Maximum number of clips with a thumbnail.",
)
@store_option
@manifest_option
@videos_option
@strict_option
def report(
    work_dir: Path,
    other: Path | None,
    split: str,
    out: Path | None,
    pictures: int,
    store: Path | None,
    manifest_path: Path | None,
    videos: Path | None,
    strict: bool,
) -> None:
    """Write a web page about a run, or about two.

    The page shows training curves, figures, the best and the worst queries, and every query with the clips it found.
    With OTHER, a second run, it also shows what WORK_DIR gains and loses against it. Open index.html of the folder in a
    browser; no network is needed. Docs: docs/guides/train.md.

    \b
    amex report run
    amex report run baseline --out comparison
    """
    out = out or work_dir / "report"
    if out.is_file() or out.suffix == ".html":
        raise AmexError(f"--out {out} is a page: give a folder, whose index.html is written")
    from ..train.report import write_report

    run = _run(work_dir, split, store, manifest_path)
    second = _run(other, split, store, manifest_path) if other is not None else None
    with progress_bar() as bar:

        def progress(name: str, total: int) -> Callable[[int], None]:
            task = bar.add_task(name, total=total)
            return lambda count: bar.advance(task, count)

        lines = write_report(
            work_dir,
            out,
            run,
            other=second,
            split_name=split,
            thumbnail=thumbnails(run.store, videos),
            frames=frames_at(run.store, videos),
            progress=progress,
            pictures=pictures,
            strict=strict,
        )
    for line in lines:
        click.echo(line)
    click.echo(f"{out / 'index.html'}: open it in a browser")


def _run(work_dir: Path, split: str, store: Path | None, manifest: Path | None) -> Run:
    from ..train.report import Run
    from ..train.selection import of_split

    used = open_run(work_dir, store, manifest)
    chosen = of_split(used.clips, split, "the manifest")
    return Run(name=work_dir.resolve().name, checkpoint=used.checkpoint, store=used.store, text=used.text, clips=chosen)
