"""``amex train``, ``eval``, ``ablate``, ``search``, ``report``: from what the command line says to models and pages."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..console import console
from ..errors import AmexError, printable
from .options import STORAGE_PATH, json_option

store_option = click.option("--store", type=STORAGE_PATH, help="The features.  [default: as in training]")
manifest_option = click.option(
    "--manifest", "manifest_path", type=click.Path(path_type=Path), help="The clips.  [default: as in training]"
)
videos_option = click.option(
    "--videos",
    type=click.Path(path_type=Path),
    help="The folder of the videos, for thumbnails; left out, there are none.",
)
strict_option = click.option(
    "--strict",
    is_flag=True,
    help="Fail if any clip or caption has no features.  [default: what failed or is empty is left out, with a count]",
)
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change one value of the configuration, for example --set train.lr=1e-3; `amex configs MODEL` lists all.",
)


@click.command()
@click.argument("name", required=False)
def configs(name: str | None) -> None:
    """List models and configurations; with the NAME of a configuration print it, of a model what can be set.

    Every key of a model is listed with its default and what it means, those of its data and training after them.
    """
    from ..train.config import CONFIGS, MODELS, Config, Data, Train, known_configs
    from ..train.options import SECTIONS

    if name is None:
        click.echo(f"models: {', '.join(MODELS)}\nconfigurations: {', '.join(known_configs())}")
    elif name in known_configs():
        click.echo((CONFIGS / f"{name}.py").read_text().rstrip())
    elif name in MODELS:
        from rich.table import Table

        table = Table("key", "default", "meaning", box=None)
        for section, kind in (("model", SECTIONS[name]), ("data", Data), ("train", Train)):
            defaults = getattr(Config.model_validate({"model": {"name": name}}), section)
            for key, field in kind.model_fields.items():
                table.add_row(f"{section}.{key}", repr(getattr(defaults, key)), field.description or "")
        console().print(table)
    else:
        raise AmexError(f"no configuration is called {name!r}; there is {', '.join((*MODELS, *known_configs()))}")


@click.command()
@click.argument("which", metavar="CONFIG")
@click.option("--store", required=True, type=STORAGE_PATH, help="The features, from `amex extract`.")
@click.option("--manifest", "manifest_path", required=True, type=click.Path(path_type=Path), help="The clips.")
@click.option("--work-dir", required=True, type=click.Path(path_type=Path), help="Where checkpoints and logs go.")
@set_option
@click.option("--resume", is_flag=True, help="Go on with the run in --work-dir, exactly; begin it if there is none.")
@strict_option
@json_option
def train(
    which: str,
    store: Path,
    manifest_path: Path,
    work_dir: Path,
    settings: tuple[str, ...],
    resume: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Train a model from a store alone.

    CONFIG is a model (amenet, hgr, ...), a configuration that comes with amex (`amex configs`), or a Python
    file of one. The checkpoint with the best rsum on the validation split is best.pth. Several GPUs, or processes:

    \b
    torchrun --nproc-per-node 4 -m amex.cli train amenet --store S --manifest M --work-dir W
    """
    from ..train.config import load_config
    from ..train.fit import fit

    config = load_config(which, settings)
    done = fit(
        config,
        store=store,
        manifest=manifest_path,
        work_dir=work_dir,
        resume=resume,
        strict=strict,
        say=lambda line: click.echo(line, err=True),
    )
    if int(os.environ.get("RANK", "0")):
        return  # of several processes, the first speaks
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(done) | {"best": str(done.best)}, indent=1))
        return
    figures = "  ".join(
        f"{name} {done.val[name]:.1f}" for name in ("t2v R@1", "t2v R@10", "v2t R@1", "v2t R@10", "rsum")
    )
    click.echo(
        f"{done.best}: epoch {done.epoch}, {done.parameters:,} parameters\n"
        f"on split {config.data.val}, which chose it: {figures}\n"
        f"Next: amex eval {done.best} --split test, amex report {work_dir}, tensorboard --logdir {work_dir}"
    )


@click.command("eval")
@click.argument("path", metavar="[CHECKPOINT]", required=False, type=click.Path(path_type=Path))
@store_option
@manifest_option
@click.option("--split", default="test", show_default=True, help="Which clips, captions and gallery; all takes all.")
@click.option(
    "--ties",
    default="mean",
    show_default=True,
    type=click.Choice(["mean", "argsort", "c4c"]),
    help="Equal scores: mean counts the expected position; the others are as HGR's and CLIP4Clip's programs count.",
)
@click.option("--merge", "merged", is_flag=True, help="Equal captions are one query, answered by any of their clips.")
@click.option("--dsl", is_flag=True, help="Also rank after a dual softmax over all queries, in rows of their own.")
@strict_option
@click.option("--out", type=click.Path(path_type=Path), help="The JSON to write.  [default: beside the checkpoint]")
@click.option(
    "--official-hgr",
    "official",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="In place of a checkpoint of amex a folder of HGR's own files: its model, features, captions, role graphs.",
)
@click.option(
    "--scores",
    "scores_out",
    type=click.Path(path_type=Path),
    help="With --official-hgr: the npz to write with the scores of its three levels.",
)
@json_option
def evaluate(
    path: Path | None,
    store: Path | None,
    manifest_path: Path | None,
    split: str,
    ties: Any,
    merged: bool,
    dsl: bool,
    strict: bool,
    out: Path | None,
    official: Path | None,
    scores_out: Path | None,
    as_json: bool,
) -> None:
    """Rank clips for captions and captions for clips, and print recalls and ranks. Docs: docs/metrics.md."""
    if (path is None) == (official is None):
        raise click.UsageError("give a checkpoint of amex train, or a folder with --official-hgr")
    if official is not None:
        evaluate_official(official, scores_out, ties, out, as_json)
        return
    if scores_out is not None:
        raise click.UsageError("--scores is for --official-hgr")
    assert path is not None
    used = load(path, store, manifest_path)
    record = evaluate_checkpoint(used, split, strict=strict, ties=ties, merged=merged, dsl=dsl)
    show(record, out or used.checkpoint.path.with_name(f"eval-{split}.json"), as_json)


def evaluate_official(folder: Path, scores_out: Path | None, ties: Any, out: Path | None, as_json: bool) -> None:
    """``amex eval --official-hgr``."""
    from rich.progress import Progress

    from ..train.official_hgr import score_official

    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=None)
        found = score_official(folder, lambda done, total: bar.update(task, completed=done, total=total))
    if scores_out is not None:
        found.save(scores_out)
    named = {"checkpoint": str(folder / "checkpoint.th"), "model": "HGR", "split": "tst", "clips": len(found.videos)}
    show(named | {"ties": ties, "merged": True} | found.evaluate(ties), out, as_json)


def show(record: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Figures to the terminal, and to a file of JSON."""
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    print_figures(record)
    if out is not None:
        click.echo(f"written to {out}")


def evaluate_checkpoint(used: Used, split: str, *, strict: bool = False, **options: Any) -> dict[str, Any]:
    """The figures of a checkpoint on a split, with all that names them."""
    from ..train.data import Split, of_split, refused_states
    from ..train.evaluate import evaluate_split

    checkpoint, config = used.checkpoint, used.checkpoint.config
    clips = of_split(used.clips, split, "the manifest")
    data = Split(used.store, clips, config.model, config.data, used.text, refuse=refused_states(strict))
    with encoding(data.clips) as progress:
        result = evaluate_split(checkpoint.model(), data, progress=progress, **options)
    named = {"checkpoint": str(checkpoint.path), "model": config.model.name, "split": split, "clips": len(data.clips)}
    ways = {"ties": options.get("ties", "mean"), "merged": options.get("merged", False)}
    return named | ways | {"fingerprints": checkpoint.fingerprints} | result


@contextlib.contextmanager
def encoding(clips: Sequence[Any]) -> Iterator[Callable[[int], None]]:
    """A bar while clips and their different captions are encoded, and what to call with how many more are."""
    from rich.progress import Progress

    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("encoding", total=len(clips) + len({text for clip in clips for text in clip.captions}))
        yield lambda count: bar.advance(task, count)


def print_figures(record: dict[str, Any]) -> None:
    """A table of the figures of ``evaluate_checkpoint``, with what chance reaches below them."""
    from rich.table import Table

    from ..train.coverage import gallery_lines

    ways = {
        "text to video": record["text_to_video"],
        "video to text": record["video_to_text"],
        "video to text, groups": record.get("video_to_text_groups"),
    }
    ways |= {f"{way.replace('_', ' ')}, dual softmax": figures for way, figures in record.get("dsl", {}).items()}
    names = ("R@1", "R@5", "R@10", "R@50", "MedR", "MeanR", "mAP")
    merged = ", equal captions merged" if record["merged"] else ""
    table = Table("", "queries", "gallery", *names, box=None, title_justify="left")
    for way, figures in ways.items():
        if figures:
            cells = [f"{figures[name]:.1f}" if name in figures else "" for name in names]
            table.add_row(way, f"{figures['queries']:,}", f"{figures['gallery']:,}", *cells)
        if chance := record.get("chance", {}).get(way.replace(" ", "_")):
            table.add_row("  by chance", "", "", *(f"{chance[name]:.1f}" for name in names if name in chance))
    click.echo(f"{record['model']} on split {record['split']}, ties by {record['ties']}{merged}")
    for line in gallery_lines(record) if "coverage" in record else ():
        click.echo(line)
    console().print(table)
    click.echo(f"rsum {record['rsum']:.1f}")
    if pairs := record.get("swapped_pairs"):
        click.echo(f"relation-swapped pairs: {pairs['accuracy']:.1f} % of {pairs['queries']:,} captions (chance 50)")


@click.command()
@click.argument("which", metavar="CONFIG")
@click.option("--store", required=True, type=STORAGE_PATH, help="The features.")
@click.option("--manifest", "manifest_path", required=True, type=click.Path(path_type=Path), help="The clips.")
@click.option("--work-dir", required=True, type=click.Path(path_type=Path), help="Where all runs go.")
@set_option
@click.option("--seeds", default="0,1,2", show_default=True, help="Train each variant with each of these.")
@click.option("--variant", "only", multiple=True, metavar="NAME", help="Only this one of the file's; repeat for more.")
@click.option("--split", default="test", show_default=True, help="What to report; checkpoints are chosen on data.val.")
@click.option("--merge", "merged", is_flag=True, help="As of amex eval.")
@json_option
def ablate(
    which: str,
    store: Path,
    manifest_path: Path,
    work_dir: Path,
    settings: tuple[str, ...],
    seeds: str,
    only: tuple[str, ...],
    split: str,
    merged: bool,
    as_json: bool,
) -> None:
    """Train the variants that a configuration file lists, with several seeds, and print mean and spread.

    The file says variants = {"name": ["section.key=value", ...], ...}. What is finished is not repeated, unless the
    configuration, the features, the manifest or its role graphs changed. The table has all variants that were made from
    what there is now.
    """
    from ..train.ablate import Sources, table_path
    from ..train.ablate import ablate as run

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise click.UsageError(f"--seeds takes numbers, as in 0,1,2, got {seeds!r}") from error
    sources = Sources(store=store, manifest=manifest_path, split=split, merged=merged)
    results = run(
        which,
        settings=settings,
        seeds=numbers,
        only=only,
        sources=sources,
        work_dir=work_dir,
        say=lambda line: click.echo(line, err=True),
    )
    if as_json:
        click.echo(json.dumps(results, indent=1))
        return
    print_ablation(results)
    for line in ablation_galleries(results):
        click.echo(line)
    click.echo(f"split {split}, mean ± sample standard deviation over the seeds; {table_path(work_dir, sources)}")


def print_ablation(results: dict[str, dict[str, Any]]) -> None:
    """A table: a variant a row, mean ± std of the figures that people compare."""
    from rich.table import Table

    wanted = ("t2v R@1", "t2v R@10", "t2v MedR", "v2t R@1", "v2t R@10", "rsum", "swapped pairs")
    names = [name for name in wanted if all(name in entry["mean"] for entry in results.values())]
    table = Table("variant", *names, "seeds", "parameters", "s a run", box=None)
    for variant, entry in results.items():
        cells = []
        for name in names:
            spread = f" ± {entry['std'][name]:.1f}" if "std" in entry else ""
            cells.append(f"{entry['mean'][name]:.1f}{spread}")
        runs = list(entry["runs"].values())
        seconds = sum(run["seconds"] for run in runs) / len(runs)
        table.add_row(variant, *cells, str(len(runs)), f"{runs[0]['parameters']:,}", f"{seconds:.0f}")
    console().print(table)


def ablation_galleries(results: dict[str, dict[str, Any]]) -> list[str]:
    """What the figures of variants are of: a gallery in common, or each its own where they read different streams."""
    from ..train.coverage import gallery_lines

    lines = {
        variant: gallery_lines(run)
        for variant, entry in results.items()
        for run in list(entry["runs"].values())[:1]
        if "coverage" in run
    }
    if len({tuple(own) for own in lines.values()}) <= 1:
        return next(iter(lines.values()), [])
    return [f"{variant}: {line}" for variant, own in lines.items() for line in own]


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
    """Write one self-contained HTML page about a run: curves, figures, best and worst queries, the configuration."""
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


class Used(NamedTuple):
    """A checkpoint with what it is to be used on."""

    checkpoint: Any
    store: Any
    clips: list[Any]
    text: Any


def load(path: Path, store: Path | None, manifest: Path | None) -> Used:
    """A checkpoint with the store and the clips it is to be used on: given, or those it was trained with."""
    from ..features import open_store
    from ..manifests import read_manifest
    from ..storage import open_path
    from ..train.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    where = {name: open_path(text) for name, text in checkpoint.sources.items()}
    for name, given in (("store", store), ("manifest", manifest)):
        if given is None and not where[name].exists():
            raise AmexError(f"the {name} of the training run, {where[name]}, is gone: give one with --{name}")
    opened, manifest = open_store(store or where["store"]), manifest or where["manifest"]
    checkpoint.check_features(opened)
    return Used(checkpoint, opened, read_manifest(manifest), checkpoint.text(opened, manifest))


def text_features(model: str | None) -> Callable[[Any, Sequence[str]], list[Any]]:
    """What makes token features of texts that the store does not hold, as those of the stream were made."""

    def made(stream: Any, texts: Sequence[str]) -> list[Any]:
        from ..extract.encoders.text import encode_like

        return encode_like(stream, texts, model)

    return made


def thumbnails(store: Any, videos: Path | None) -> Callable[[Any], bytes | None]:
    """Pictures of clips, from their videos where there is a folder of them."""
    if videos is None:
        return lambda clip: None
    if not videos.is_dir():
        raise AmexError(f"--videos {videos} is not a folder")
    from ..extract.sheet import thumbnail

    def made(clip: Any) -> bytes | None:
        try:
            return thumbnail(store, clip.clip_id, videos)
        except AmexError as error:
            click.echo(f"no thumbnail of {printable(clip.clip_id)}: {error}", err=True)
            return None

    return made


COMMANDS = (train, evaluate, ablate, search, report, configs)
