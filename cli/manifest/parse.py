"""``amex manifest parse``: the role graphs of captions."""

from __future__ import annotations

from pathlib import Path

import click

from ...console import progress_bar
from ...errors import AmexError


@click.command("parse")
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
    from ... import language
    from ...manifests import read_manifest

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
