"""``amex moments``: figures of a checkpoint on queries for moments of videos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..console import console, progress_bar
from ..errors import AmexError, plural
from ..searching import open_run
from .options import dataset_option, json_option, root_option
from .parameters import CHECKPOINT, Positive
from .places import store_and_manifest
from .trained import manifest_option, store_option, strict_option

OF_MOMENTS = ("R1@0.3", "R1@0.5", "R1@0.7", "R5@0.3", "R5@0.5", "R5@0.7", "mIoU", "mAP@0.5", "mAP@0.75", "mAP")
OF_HIGHLIGHTS = ("HIT@1", "HL-mAP")


@click.command()
@click.argument("path", metavar="CHECKPOINT", type=CHECKPOINT)
@dataset_option
@root_option
@store_option
@manifest_option
@click.option("--split", default="test", show_default=True, help="The split to evaluate; all for all videos.")
@click.option(
    "--length",
    "lengths",
    multiple=True,
    type=Positive(),
    default=(4, 8, 16, 32, 64, 128),
    show_default=True,
    help="Length of windows in seconds; repeat for more. A video that is not longer is one window.",
)
@click.option(
    "--step",
    type=Positive(1),
    default=0.25,
    show_default=True,
    help="Distance between starts of windows, as a share of their length.",
)
@click.option(
    "--nms",
    "overlap",
    type=Positive(1),
    default=0.5,
    show_default=True,
    help="Drop a window if its IoU with a window of higher score is above this; 1 drops none.",
)
@strict_option
@click.option(
    "--submission",
    "submissions",
    nargs=2,
    multiple=True,
    metavar="FORMAT FILE",
    help="Also write the submission to a benchmark: qvhighlights (JSON lines) or tvr (JSON).",
)
@click.option("--out", type=click.Path(path_type=Path), help="The JSON to write.  [default: beside the checkpoint]")
@json_option
def moments(
    path: Path,
    dataset: str | None,
    root: Path | None,
    store: Path | None,
    manifest_path: Path | None,
    split: str,
    lengths: tuple[float, ...],
    step: float,
    overlap: float,
    strict: bool,
    submissions: Sequence[tuple[str, str]],
    out: Path | None,
    as_json: bool,
) -> None:
    """Print how well a model finds moments in videos.

    Windows slide over each video. A window is encoded as a clip from the rows whose middles lie in it, or from the
    nearest row if there is none, and scored with the queries of its video. A window that overlaps a better one is
    dropped. Videos without rows are left out and counted. Docs: docs/guides/moments.md.

    \b
    amex moments run
    amex moments run --submission qvhighlights test.jsonl
    """
    if unknown := next((form for form, _ in submissions if form not in ("qvhighlights", "tvr")), None):
        raise click.UsageError(f"--submission {unknown}: amex moments writes qvhighlights and tvr")
    if dataset is not None:
        store, manifest_path = store_and_manifest(dataset, root, store, manifest_path)
    from ..storage import write_atomic
    from ..train.data import Split
    from ..train.moment_answers import TVR, QVHighlights
    from ..train.selection import of_split, refused_states
    from ..train.windows import Windows, evaluate_moments, with_moments

    used = open_run(path, store, manifest_path)
    checkpoint, config = used.checkpoint, used.checkpoint.config
    of_this_split = of_split(used.clips, split, "the manifest")
    clips = with_moments(of_this_split, split)
    data = Split(used.store, clips, config.model, config.data, used.text, refuse=refused_states(strict))
    windows = Windows(lengths=lengths, step=step, overlap=overlap)
    with progress_bar() as bar:
        task = bar.add_task("encoding", total=None)
        model = checkpoint.model()
        answers = [
            (Path(file), TVR(windows, model, data) if form == "tvr" else QVHighlights(windows))
            for form, file in submissions
        ]
        result = evaluate_moments(
            model,
            data,
            clips,
            windows,
            lambda done, total: bar.update(task, completed=done, total=total),
            lambda scored: [collect(scored) for _, collect in answers],
        )
    for file, collected in answers:
        collected.write(file, of_this_split)
    record = {"checkpoint": str(checkpoint.path), "model": config.model.name, "split": split} | result
    out = out or checkpoint.path.with_name(f"moments-{split}.json")
    with write_atomic(out, AmexError) as handle:
        handle.write(json.dumps(record, indent=1) + "\n")
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    print_moments(record)
    click.echo(f"written to {out}")


def print_moments(record: dict[str, Any]) -> None:
    """Print the figures of ``evaluate_moments`` as a table, with those of the two baselines."""
    from rich.table import Table

    from ..train.coverage import Coverage

    coverage, windows = Coverage(**record["coverage"]), record["windows"]
    lengths = ", ".join(f"{length:g}" for length in windows["lengths"])
    click.echo(f"{record['model']} on split {record['split']}: moments of {plural(record['videos'], 'video')}")
    click.echo(f"videos {coverage.clip_line}")
    click.echo(f"{plural(record['queries'], 'query')} with moments; {coverage.caption_line}")
    click.echo(f"windows {windows['scored']:,} of {lengths} s; NMS at an IoU of {windows['overlap']:g}")
    for warning in record["warnings"]:
        click.echo(f"warning: {warning}")
    for names, queries, figures in (
        (OF_MOMENTS, record["queries"], record["figures"]),
        (OF_HIGHLIGHTS, record.get("highlights", {}).get("queries"), record.get("highlights", {})),
    ):
        if not queries:
            continue
        table = Table("", "queries", *names, box=None, title_justify="left")
        for way in ("model", "random order", "whole video"):
            if way in figures:
                table.add_row(way, f"{queries:,}", *(f"{figures[way][name]:.1f}" for name in names))
        console().print(table)
