"""``amex demo --real DIR``: extract and search a folder of videos, and write a page of the results."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import plural, printable
from ..searching import Searching, open_searcher
from .extract import extract
from .search import print_hits
from .trained import thumbnails

if TYPE_CHECKING:
    from ..train.search import Hit

QUERIES = 4  # that are shown
HITS = 5  # per query

# Queries for videos without captions: common subjects. The ones that fit best are shown.
QUESTIONS = (
    "someone cooking in a kitchen",
    "food on a plate",
    "a dog",
    "a cat",
    "a wild animal",
    "a bird",
    "a horse",
    "fish under water",
    "a street with cars",
    "someone rides a bicycle",
    "someone rides a motorbike",
    "a train",
    "an airplane in the sky",
    "a boat on the water",
    "people play a ball game",
    "someone does gymnastics",
    "someone plays an instrument",
    "a concert on a stage",
    "people dance",
    "a person in a suit talks",
    "someone at a computer",
    "a city with tall buildings",
    "mountains and snow",
    "a beach",
    "flowers in a garden",
    "a child plays with a toy",
    "a video game",
    "the earth from space",
)


def real_demo(ctx: click.Context, videos: Path, out: Path) -> None:
    """Extract a folder, search it a few times, and write a page of the results. Unreadable videos are left out.

    Raises:
        AmexError: if the folder has no readable video.
    """
    store, page = out / "my.zarr", out / "found.html"
    click.echo(f"[1/3] amex extract {videos} --store {store}")
    try:
        ctx.invoke(extract, folder=videos, store=store)
    except SystemExit as ended:
        if ended.code not in (0, 3):  # 3: some clips failed
            raise
    searcher = open_searcher(store)
    click.echo(f"\n[2/3] searching with {searcher.description}; {searcher.coverage.clip_line}")
    results = chosen_searches(searcher)
    for query, hits in results.items():
        click.echo(f"\namex search {store} {shlex.quote(printable(query))}")
        print_hits(hits)
    if all(hit.weak for hits in results.values() for hit in hits[:1]):
        click.echo("\nall results are weak: the videos show other things than these queries ask for")

    from ..train.report import write_results

    write_results(
        page,
        title=f"Found in {plural(len(searcher.clips), 'clip')}",
        results=results,
        coverage=searcher.coverage,
        description=searcher.description,
        thumbnail=thumbnails(searcher.store, videos),
    )
    click.echo(
        f"\n[3/3] {page}: open it in a browser\n\n"
        f"Next:\n"
        f"  amex search {store} 'what you look for'\n"
        f"  amex serve {store}\n"
        f"  amex features info {store}\n"
        f"  captions.csv in {videos}, with columns video and caption, and the same command again: then train a model"
    )


def chosen_searches(searcher: Searching) -> dict[str, list[Hit]]:
    """Return a few queries with their best hits: captions of the user, else the questions that fit best."""
    captions = [clip.captions[0] for clip in searcher.clips if clip.captions]
    if captions:
        step = max(1, len(captions) // QUERIES)
        queries = list(dict.fromkeys(captions[::step]))[:QUERIES]
        return {query: searcher.clips_for(query, HITS) for query in queries}
    by_question = {query: searcher.clips_for(query, HITS) for query in QUESTIONS}
    best_first = sorted(by_question.items(), key=lambda item: item[1][0].weak - item[1][0].score)
    by_clip: dict[str, tuple[str, list[Hit]]] = {}  # one question a clip, as long as there are clips
    for query, hits in best_first:
        by_clip.setdefault(hits[0].clip.clip_id, (query, hits))
    chosen = dict([*by_clip.values(), *best_first])
    return {query: chosen[query] for query in list(chosen)[:QUERIES]}
