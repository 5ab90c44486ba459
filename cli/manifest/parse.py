"""``amex manifest parse``: the role graphs of captions."""

from __future__ import annotations

from pathlib import Path

import click

from ...console import progress_bar
from ...errors import AmexError, plural
from ..parameters import SOURCE
from .summary import manifest_argument


@click.command("parse")
@manifest_argument
@click.option(
    "--parser",
    "which",
    default="rules",
    show_default=True,
    help="rules: amex's own parser, offline. spacy:MODEL: an installed spaCy model, such as en_core_web_sm.",
)
@click.option(
    "--official",
    type=SOURCE,
    help="Read the graphs from HGR's sent2rolegraph.augment.json instead of parsing.",
)
def manifest_parse(path: Path, which: str, official: Path | None) -> None:
    """Parse captions into role graphs, for HGR and MCSAN.

    The graphs are written beside the manifest. A graph lists the verbs of a caption, and the phrases that are their
    arguments, with their roles. Graphs that the same parser has already made are kept.

    \b
    amex manifest parse my.jsonl
    amex manifest parse my.jsonl --parser spacy:en_core_web_sm
    """
    from ... import language
    from ...manifests import read_manifest

    clips = read_manifest(path)
    captions = list(dict.fromkeys(caption for clip in clips for caption in clip.captions))
    target = language.graphs_path(path)
    if official is not None:
        graphs = language.read_graphs(official)
        if absent := [caption for caption in captions if caption not in graphs.graphs]:
            raise AmexError(f"{official} has no graph of {plural(len(absent), 'caption')}, the first {absent[0]!r}")
    else:
        existing = language.read_graphs(target) if target.exists() else None
        made_by, parse = language.role_parser(which)
        with progress_bar() as bar:
            task = bar.add_task("parsing", total=len(captions))
            graphs = language.complete_graphs(
                captions, existing, made_by, parse, lambda count: bar.advance(task, count)
            )
    language.write_graphs(graphs, target)
    click.echo(f"{target}: role graphs of {plural(len(graphs.graphs), 'caption')} by {graphs.parser}")
