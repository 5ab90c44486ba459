"""``amex search``: clips for a text, texts for a clip."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ..console import console
from ..errors import printable
from .options import json_option
from .trained import load, manifest_option, store_option, strict_option, thumbnails, videos_option


@click.command()
@click.argument("path", metavar="CHECKPOINT", type=click.Path(path_type=Path))
@click.argument("query", required=False)
@click.option("--video", "clip_id", help="Instead of QUERY a clip of the store: find the captions that fit it.")
@click.option("-k", "--top", default=10, show_default=True, type=click.IntRange(min=1), help="How many results.")
@store_option
@manifest_option
@click.option("--split", default="all", show_default=True, help="Which of the manifest's clips to search.")
@click.option(
    "--index",
    "kind",
    default="Flat",
    show_default=True,
    help="FAISS's name of the index: Flat compares with every clip; IVF4096,PQ64 suits millions.",
)
@click.option(
    "--text-encoder",
    metavar="MODEL",
    help="Encodes a QUERY that is no caption of the store.  [default: minilm or the stream's published model, "
    "whichever the stream was made with]",
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

    Embeddings and index are kept beside the checkpoint: the first search computes them.

    \b
    amex search W/best.pth "a red circle pushes a blue square"
    amex search W/best.pth --video shapes_0_00008.mp4
    """
    if (query is None) == (clip_id is None):
        raise click.UsageError("give either QUERY or --video CLIP")
    from rich.table import Table

    from ..train.data import of_split
    from ..train.search import Searcher

    used = load(path, store, manifest_path)
    clips = of_split(used.clips, split, "the manifest")
    searcher = Searcher(used.checkpoint, used.store, clips, used.text, kind=kind, strict=strict)
    if searcher.coverage.clips_left_out:
        click.echo(f"searched {searcher.coverage.clip_line}", err=True)
    hits = (
        searcher.clips_for(query, top, text_features(text_encoder))
        if query
        else searcher.captions_for(clip_id or "", top)
    )
    if html:
        from ..train.report import write_results

        write_results(
            html,
            query=query or clip_id or "",
            hits=hits,
            coverage=searcher.coverage,
            checkpoint=path,
            thumbnail=thumbnails(used.store, videos),
        )
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(hit) for hit in hits], indent=1))
        return
    table = Table("", "score", "clip", "seconds", "caption", box=None)
    for hit in hits:
        begin = "" if hit.start is None else f"{hit.start:.1f} to {'end' if hit.end is None else f'{hit.end:.1f}'}"
        table.add_row(str(hit.rank), f"{hit.score:.3f}", printable(hit.clip.clip_id), begin, printable(hit.caption))
    console().print(table)
    if html:
        click.echo(f"written to {html}")


def text_features(model: str | None) -> Callable[[Any, Sequence[str]], list[Any]]:
    """What makes token features of texts that the store does not hold, as those of the stream were made."""

    def made(stream: Any, texts: Sequence[str]) -> list[Any]:
        from ..extract.encoders import encode_like

        return encode_like(stream, texts, model)

    return made
