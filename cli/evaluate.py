"""``amex eval``: figures of a checkpoint, or of the files of HGR's own program."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import console, progress_bar
from ..errors import plural
from ..searching import OpenedRun, open_run
from .options import dataset_option, json_option, root_option
from .parameters import CHECKPOINT, FOLDER, SOURCE
from .places import store_and_manifest
from .trained import encoding, manifest_option, store_option, strict_option

if TYPE_CHECKING:
    from ..train.rankings import Writer


@click.command("eval")
@click.argument("paths", metavar="[CHECKPOINT]...", nargs=-1, type=CHECKPOINT)
@dataset_option
@root_option
@store_option
@manifest_option
@click.option("--split", default="test", show_default=True, help="The split to evaluate; all for all clips.")
@click.option(
    "--ties",
    default="mean",
    show_default=True,
    type=click.Choice(["mean", "argsort", "c4c"]),
    help="Rank of equal scores. mean: the expected rank; argsort and c4c: as the programs of HGR and CLIP4Clip.",
)
@click.option(
    "--merge", "merged", is_flag=True, help="Treat equal captions as one query, which any of their clips answers."
)
@click.option(
    "--dsl", is_flag=True, help="Also print figures after a dual softmax over all queries, in rows of their own."
)
@strict_option
@click.option("--out", type=click.Path(path_type=Path), help="The JSON to write.  [default: beside the checkpoint]")
@click.option(
    "--official-hgr",
    "official",
    metavar="DIR",
    type=FOLDER,
    help="Evaluate a folder of HGR's own files instead: model, features, captions, role graphs.",
)
@click.option(
    "--scores",
    "scores_out",
    metavar="FILE.npz",
    type=click.Path(path_type=Path),
    help="Also write all scores with captions and clip ids; with --official-hgr, of its three levels.",
)
@click.option(
    "--ranks",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write the rank and the best clips of each caption, as .csv or .jsonl.",
)
@click.option(
    "--run",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write the ranking as a TREC run, with .qrels and .queries.tsv beside it.",
)
@click.option(
    "--hits",
    type=click.IntRange(min=1),
    help="Clips per caption in --ranks and --run.  [default: 10 in --ranks, 1000 in --run]",
)
@click.option(
    "--submission",
    "submissions",
    nargs=2,
    multiple=True,
    metavar="FORMAT FILE",
    help="Also write the submission to a benchmark: epic_mir, or mteb:TASK such as mteb:MSRVTTT2V.",
)
@click.option(
    "--sentences",
    type=SOURCE,
    help="For epic_mir: its list of texts, EPIC_100_retrieval_test_sentence.csv.",
)
@click.option(
    "--sls",
    nargs=3,
    type=click.IntRange(0, 5),
    metavar="PT TL TD",
    help="For epic_mir: the Supervision Levels Scale (pre-training, training labels, training data).",
)
@click.option(
    "--same-features",
    is_flag=True,
    help="Accept imported features from other files than in training. amex cannot check that they fit.",
)
@click.option(
    "--binary",
    metavar="FILE|graphs",
    help="Also test captions against foils: a CSV with clip_id, caption, foil; graphs makes foils from role graphs.",
)
@json_option
def evaluate(
    paths: Sequence[Path],
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
    ranks: Path | None,
    run: Path | None,
    hits: int | None,
    submissions: Sequence[tuple[str, str]],
    sentences: Path | None,
    sls: tuple[int, int, int] | None,
    same_features: bool,
    binary: str | None,
    as_json: bool,
) -> None:
    """Print recalls and ranks of a trained model.

    Clips are ranked for each caption, and captions for each clip. CHECKPOINT is the work folder of a run, or a file in
    it. The scores of several checkpoints, such as of several seeds, are standardised and averaged. The temperature of
    --dsl is chosen on the validation split of the first checkpoint. With --dataset another gallery than that of the
    training is used, such as youcook2:howto100m. Docs: docs/concepts/metrics.md.

    \b
    amex eval run --ranks ranks.csv
    amex eval run0 run1 run2
    amex eval run --dataset msrvtt:mteb --submission mteb:MSRVTTT2V MSRVTTT2V.json
    """
    if bool(paths) == bool(official):
        raise click.UsageError("give a checkpoint of amex train, or a folder with --official-hgr")
    if official is not None:
        if ranks or run or submissions or binary:
            raise click.UsageError("--ranks, --run, --submission and --binary are for a checkpoint of amex train")
        evaluate_official(official, scores_out, ties, out, as_json)
        return
    if binary and len(paths) > 1:
        raise click.UsageError("--binary takes one checkpoint")
    check_submissions(submissions, sentences, sls)
    if ranks and ranks.suffix not in (".csv", ".jsonl"):
        raise click.UsageError(f"--ranks {ranks}: the name must end in .csv or .jsonl, which is the format")
    if binary and binary != "graphs":
        SOURCE.convert(binary, None, None)
    if dataset is not None:
        store, manifest_path = store_and_manifest(dataset, root, store, manifest_path)
    used = [open_run(path, store, manifest_path, same_features=same_features) for path in paths]
    name = used[0].checkpoint.config.model.name
    writers = list(answer_writers(scores_out, ranks, run, tag=name, ties=ties, hits=hits))
    writers += submission_writers(submissions, sentences, sls, used)
    record = evaluate_checkpoints(used, split, strict=strict, ties=ties, merged=merged, dsl=dsl, writers=writers)
    if binary:
        record["binary"] = binary_selection(used[0], split, binary)
    figures_of = "-".join(filter(None, ("eval", dataset and dataset.replace(":", "-"), split)))
    beside = used[0].checkpoint.path.with_name(f"{figures_of}.json") if len(used) == 1 else None
    answers = [path for path in (scores_out, ranks, run) if path] + [Path(file) for _, file in submissions]
    show(record, out or beside, as_json, others=answers)


def check_submissions(submissions: Sequence[tuple[str, str]], sentences: Path | None, sls: object) -> None:
    """Raise UsageError for an unknown format, or one that needs other options."""
    for form, _ in submissions:
        if form != "epic_mir" and not form.startswith("mteb:"):
            moments = "; amex moments writes it" if form in ("qvhighlights", "tvr") else ""
            raise click.UsageError(f"--submission {form}: amex eval writes epic_mir and mteb:TASK{moments}")
        if form == "epic_mir" and not (sentences and sls):
            raise click.UsageError(
                "--submission epic_mir needs --sentences EPIC_100_retrieval_test_sentence.csv and --sls PT TL TD, the "
                "levels of supervision that the challenge asks for"
            )


def answer_writers(
    scores: Path | None, ranks: Path | None, run: Path | None, *, tag: str, ties: Any, hits: int | None
) -> Iterator[Writer]:
    """Yield the writers of the requested files of scores and rankings."""
    from ..train.rankings import HITS, RUN_DEPTH, check_ranks, write_ranks, write_run, write_scores

    if scores:
        yield partial(write_scores, scores)
    if ranks:
        check_ranks(ranks)
        yield partial(write_ranks, ranks, ties=ties, hits=hits or HITS)
    if run:
        yield partial(write_run, run, tag=tag, hits=hits or RUN_DEPTH)


def submission_writers(
    submissions: Sequence[tuple[str, str]],
    sentences: Path | None,
    sls: tuple[int, int, int] | None,
    used: Sequence[OpenedRun],
) -> Iterator[Writer]:
    """Yield the writers of the requested submissions."""
    from ..train.evaluate import count_parameters
    from ..train.submissions import write_epic_mir, write_mteb

    for form, file in submissions:
        if form == "epic_mir":
            yield partial(write_epic_mir, Path(file), sentences=sentences, supervision=sls)
        else:
            name = f"amex/{used[0].checkpoint.config.model.name}"
            count = sum(count_parameters(each.checkpoint.model()) for each in used)
            yield partial(write_mteb, Path(file), task_name=form.removeprefix("mteb:"), model=name, count=count)


def evaluate_official(folder: Path, scores_out: Path | None, ties: Any, out: Path | None, as_json: bool) -> None:
    """Evaluate a folder of HGR's own program (``--official-hgr``)."""
    from ..train.official_hgr import score_official

    with progress_bar() as bar:
        task = bar.add_task("scoring", total=None)
        scores = score_official(folder, lambda done, total: bar.update(task, completed=done, total=total))
    if scores_out is not None:
        scores.save(scores_out)
    named = {"checkpoint": str(folder / "checkpoint.th"), "model": "HGR", "split": "tst", "clips": len(scores.videos)}
    others = [scores_out] if scores_out else []
    show(named | {"ties": ties, "merged": True} | scores.evaluate(ties), out, as_json, others=others)


def show(record: dict[str, Any], out: Path | None, as_json: bool, *, others: Sequence[Path] = ()) -> None:
    """Print figures, write them as JSON, and name all files that were written.

    Args:
        out: the file of the figures; None writes none.
        others: the files of scores and rankings.
    """
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    print_figures(record)
    if files := [*filter(None, (out,)), *others]:
        click.echo(f"written to {', '.join(map(str, files))}")
    if out is None and "checkpoints" in record:
        click.echo("figures of several runs are not saved: --out FILE writes them")


def evaluate_checkpoints(
    used: Sequence[OpenedRun],
    split: str,
    *,
    strict: bool = False,
    merged: bool = False,
    dsl: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Return the figures of a checkpoint, or of the averaged scores of several, with the settings that made them."""
    from ..train.ensemble import choose_temperature
    from ..train.evaluate import evaluate_scores

    checkpoint = used[0].checkpoint
    names = [str(each.checkpoint.path) for each in used]
    data, scores = score_checkpoints(used, split, strict)
    dsl_options = {}
    val = checkpoint.config.data.val
    if dsl and any(clip.split == val and clip.captions for clip in used[0].clips):
        val_data, val_scores = (data, scores) if val == split else score_checkpoints(used, val, strict)
        dsl_options = {"temperature": choose_temperature(val_scores, val_data, merged=merged)}
    result = evaluate_scores(scores, data, merged=merged, dsl=dsl, **dsl_options, **options)
    named = {"checkpoint": names[0], "model": checkpoint.config.model.name, "split": split, "clips": len(data.clips)}
    if len(used) > 1:
        named |= {"checkpoints": names}
    if dsl_options:
        named |= {"dsl_temperature": dsl_options["temperature"], "dsl_chosen_on": val}
    ways = {"ties": options.get("ties", "mean"), "merged": merged}
    return named | ways | {"fingerprints": checkpoint.fingerprints} | result


def score_checkpoints(used: Sequence[OpenedRun], split: str, strict: bool) -> tuple[Any, Any]:
    """Return the clips and captions of a split, and the scores of a checkpoint, or the average of several."""
    from ..train.data import Split
    from ..train.ensemble import check_same_gallery, combine
    from ..train.evaluate import score_split
    from ..train.selection import of_split, refused_states

    splits, scores = [], []
    for each in used:
        config = each.checkpoint.config
        clips = of_split(each.clips, split, "the manifest")
        splits.append(Split(each.store, clips, config.model, config.data, each.text, refuse=refused_states(strict)))
    check_same_gallery(splits, [str(each.checkpoint.path) for each in used])
    for each, data in zip(used, splits, strict=True):
        with encoding(data.clips) as progress:
            scores.append(score_split(each.checkpoint.model(), data, progress))
    return splits[0], combine(scores)


def binary_selection(used: OpenedRun, split: str, source: str) -> dict[str, dict[str, float]]:
    """Return how often a caption scores higher than its foil, by kind of foil, see ``train.binary.ask``.

    Args:
        source: a file of questions, or ``graphs``.
    """
    from ..extract.encoders import encode_like
    from ..train.api import TrainedModel
    from ..train.binary import ask, draw_questions, read_questions
    from ..train.rolegraphs import Graphs
    from ..train.selection import of_split

    if source == "graphs":
        graphs = Graphs.beside(used.manifest, used.checkpoint.config.model)
        questions = draw_questions(of_split(used.clips, split, "the manifest"), graphs)
    else:
        questions = read_questions(Path(source))
    stream = used.checkpoint.config.model.text_stream
    model = TrainedModel(used.checkpoint, lambda: used.store[stream], encode_like)
    with progress_bar() as bar:
        task = bar.add_task("asking", total=len(questions))
        return ask(model, used.store, questions, lambda count: bar.advance(task, count))


def print_figures(record: dict[str, Any]) -> None:
    """Print the figures of ``evaluate_checkpoints`` as a table, with the figures of chance below them."""
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
    together = f"{len(record['checkpoints'])} runs of " if "checkpoints" in record else ""
    click.echo(f"{together}{record['model']} on split {record['split']}, ties by {record['ties']}{merged}")
    for line in gallery_lines(record) if "coverage" in record else ():
        click.echo(line)
    console().print(table)
    click.echo(f"rsum {record['rsum']:.1f}")
    if "dsl_rsum" in record:
        how = ""
        if "dsl_temperature" in record:
            how = f", its temperature {record['dsl_temperature']:.3g} chosen on {record['dsl_chosen_on']}"
        click.echo(f"rsum {record['dsl_rsum']:.1f} after dual softmax{how}")
    if pairs := record.get("swapped_pairs"):
        click.echo(
            f"relation-swapped pairs: {pairs['accuracy']:.1f} % of {plural(pairs['queries'], 'caption')} (chance 50)"
        )
    for kind, answers in record.get("binary", {}).items():
        click.echo(f"caption or foil, {kind}: {answers['accuracy']:.1f} % of {answers['queries']:,} (chance 50)")
