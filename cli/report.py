"""``amex report``: a page about a run."""

from __future__ import annotations

from pathlib import Path

import click

from .trained import encoding, load, manifest_option, store_option, strict_option, thumbnails, videos_option


@click.command()
@click.argument("work_dir", type=click.Path(path_type=Path))
@click.option("--split", default="test", show_default=True, help="Whose figures and queries to show.")
@click.option("--out", type=click.Path(path_type=Path), help="The page to write.  [default: report.html in WORK_DIR]")
@store_option
@manifest_option
@videos_option
@strict_option
def report(
    work_dir: Path,
    split: str,
    out: Path | None,
    store: Path | None,
    manifest_path: Path | None,
    videos: Path | None,
    strict: bool,
) -> None:
    """Write one HTML page about a run.

    It has curves, figures, the best and worst queries, the configuration, and all pictures in itself.
    """
    from ..train.data import of_split
    from ..train.report import write_report

    used = load(work_dir, store, manifest_path)
    out = out or work_dir / "report.html"
    chosen = of_split(used.clips, split, "the manifest")
    with encoding(chosen) as progress:
        lines = write_report(
            work_dir,
            out,
            checkpoint=used.checkpoint,
            store=used.store,
            clips=chosen,
            text=used.text,
            split_name=split,
            thumbnail=thumbnails(used.store, videos),
            progress=progress,
            strict=strict,
        )
    for line in lines:
        click.echo(line)
    click.echo(f"{out}: open it in a browser")
