"""``amex eval``: figures of a checkpoint, or of the files of HGR's own program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..console import console, progress_bar
from .options import dataset_option, json_option, root_option
from .places import store_and_manifest
from .trained import Used, encoding, load, manifest_option, store_option, strict_option


@click.command("eval")
@click.argument("path", metavar="[CHECKPOINT]", required=False, type=click.Path(path_type=Path))
@dataset_option
@root_option
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
    dataset: str | None,
    root: Path | None,
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
    """Print recalls and ranks of a trained model.

    Clips are ranked for captions, and captions for clips. CHECKPOINT is the work folder of a run, or a file in it. With
    --dataset it is another gallery than that of the training run, such as youcook2:howto100m. Docs: docs/metrics.md.
    """
    if (path is None) == (official is None):
        raise click.UsageError("give a checkpoint of amex train, or a folder with --official-hgr")
    if official is not None:
        evaluate_official(official, scores_out, ties, out, as_json)
        return
    if scores_out is not None:
        raise click.UsageError("--scores is for --official-hgr")
    assert path is not None
    if dataset is not None:
        store, manifest_path = store_and_manifest(dataset, root, store, manifest_path)
    used = load(path, store, manifest_path)
    record = evaluate_checkpoint(used, split, strict=strict, ties=ties, merged=merged, dsl=dsl)
    figures_of = "-".join(filter(None, ("eval", dataset and dataset.replace(":", "-"), split)))
    show(record, out or used.checkpoint.path.with_name(f"{figures_of}.json"), as_json)


def evaluate_official(folder: Path, scores_out: Path | None, ties: Any, out: Path | None, as_json: bool) -> None:
    """``amex eval --official-hgr``."""
    from ..train.official_hgr import score_official

    with progress_bar() as bar:
        task = bar.add_task("scoring", total=None)
        scores = score_official(folder, lambda done, total: bar.update(task, completed=done, total=total))
    if scores_out is not None:
        scores.save(scores_out)
    named = {"checkpoint": str(folder / "checkpoint.th"), "model": "HGR", "split": "tst", "clips": len(scores.videos)}
    show(named | {"ties": ties, "merged": True} | scores.evaluate(ties), out, as_json)


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
