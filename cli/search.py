"""``amex search``: clips for a text, texts for a clip."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console import console
from ..errors import check_text, printable
from ..searching import open_searcher
from .options import json_option
from .parameters import STORAGE_PATH
from .trained import manifest_option, store_option, strict_option, thumbnails, videos_option

if TYPE_CHECKING:
    from ..train.search import Hit


@click.command()
@click.argument("path", metavar="RUN|STORE", type=STORAGE_PATH)
@click.argument("query", required=False)
@click.option("--video", "clip_id", help="Find captions for this clip of the store, instead of a QUERY.")
@click.option("-k", "--top", default=10, show_default=True, type=click.IntRange(min=1), help="Number of results.")
@store_option
@manifest_option
@click.option("--split", default="all", show_default=True, help="The split to search; all for all clips.")
@click.option(
    "--index",
    "kind",
    default="Flat",
    show_default=True,
    help="For a run: a FAISS index. Flat compares with every clip; IVF4096,PQ64 suits millions of clips.",
)
@click.option(
    "--text-encoder",
    metavar="MODEL",
    help="The model that encodes QUERY.  [default: the model of the text stream, if it is minilm or published; minilm "
    "for class names]",
)
@strict_option
@click.option("--html", type=click.Path(path_type=Path), help="Also write a self-contained page, with thumbnails.")
@videos_option
@json_option
def search(
    path: Path,
    query: str | None,
    clip_id: str | None,
    top: int,
    store: Path | None,
    manifest_path: Path | None,
    split: str,
    kind: str,
    text_encoder: str | None,
    strict: bool,
    html: Path | None,
    videos: Path | None,
    as_json: bool,
) -> None:
    """Find clips for a text, or with --video texts for a clip.

    A store is searched without training: by CLIP, or by the class names of efficientnet_lite2. The first line says
    which. A hit is "weak" if other texts fit its clip equally well. Docs: docs/guides/search.md.

    For a run, embeddings and the index are kept beside the checkpoint; the first search computes them.

    \b
    amex search my.zarr "someone frying in a wok"
    amex search W/best.pth "a red circle pushes a blue square"
    amex search W/best.pth --video shapes_0_00008.mp4
    """
    if (query is None) == (clip_id is None):
        raise click.UsageError("give either QUERY or --video CLIP")
    if query is not None and not query.strip():
        raise click.UsageError("QUERY has no words")
    try:
        check_text("QUERY", query or "")
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    searcher = open_searcher(
        path,
        store=store,
        manifest=manifest_path,
        split=split,
        index=kind,
        text_encoder=text_encoder,
        strict=strict,
    )
    click.echo(f"searching with {searcher.description}; {searcher.coverage.clip_line}", err=True)
    hits = searcher.clips_for(query, top) if query is not None else searcher.captions_for(clip_id or "", top)
    if html:
        from ..train.report import write_results

        write_results(
            html,
            title=query or clip_id or "",
            results={"": hits},
            coverage=searcher.coverage,
            description=searcher.description,
            thumbnail=thumbnails(searcher.store, videos),
        )
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(hit) for hit in hits], indent=1))
        return
    print_hits(hits)
    if html:
        click.echo(f"written to {html}")


def print_hits(hits: Sequence[Hit]) -> None:
    """A table of results."""
    from rich.table import Column, Table

    clip = Column("clip", overflow="fold")  # an id is never cut: it is typed again
    table = Table("", "score", "", clip, "seconds", "caption", box=None)
    for hit in hits:
        begin = "" if hit.start is None else f"{hit.start:.1f} to {'end' if hit.end is None else f'{hit.end:.1f}'}"
        weak = "weak" if hit.weak else ""
        table.add_row(
            str(hit.rank), f"{hit.score:.3f}", weak, printable(hit.clip.clip_id), begin, printable(hit.caption)
        )
    console().print(table)
