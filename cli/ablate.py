"""``amex ablate``: the variants of a configuration, with several seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..console import console
from .options import dataset_option, json_option, root_option
from .places import store_and_manifest
from .train import set_option, trained_on_options


@click.command()
@click.argument("which", metavar="CONFIG")
@dataset_option
@root_option
@trained_on_options
@click.option("--work-dir", required=True, type=click.Path(path_type=Path), help="Where all runs go.")
@set_option
@click.option("--seeds", default="0,1,2", show_default=True, help="Train each variant with each of these.")
@click.option("--variant", "only", multiple=True, metavar="NAME", help="Only this one of the file's; repeat for more.")
@click.option("--split", default="test", show_default=True, help="What to report; checkpoints are chosen on data.val.")
@click.option("--merge", "merged", is_flag=True, help="As of amex eval.")
@json_option
def ablate(
    which: str,
    dataset: str | None,
    root: Path | None,
    store: Path | None,
    manifest_path: Path | None,
    work_dir: Path,
    settings: tuple[str, ...],
    seeds: str,
    only: tuple[str, ...],
    split: str,
    merged: bool,
    as_json: bool,
) -> None:
    """Train the variants that a file lists, and compare them.

    Each is trained with several seeds; mean and spread are printed, and how far each variant is from the configuration
    as it is (default), with a 95 percent interval over queries and seeds. The file says variants = {"name":
    ["section.key=value", ...], ...}. What is finished is not repeated, unless the configuration, the features, the
    manifest or its role graphs changed. The table has all variants that were made from what there is now.
    """
    from ..train.ablate import Sources, table_path
    from ..train.ablate import ablate as run

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise click.UsageError(f"--seeds takes numbers, as in 0,1,2, got {seeds!r}") from error
    store, manifest_path = store_and_manifest(dataset, root, store, manifest_path)
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
    print_differences(results)
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


def print_differences(results: dict[str, dict[str, Any]]) -> None:
    """A table: how far each variant differs from the first, with its interval."""
    from rich.table import Table

    others = {variant: entry["against"] for variant, entry in results.items() if "against" in entry}
    for variant, found in others.items():
        if problem := found.get("problem"):
            click.echo(f"{variant} is not compared with {found['variant']}: {problem}")
    others = {variant: found for variant, found in others.items() if "intervals" in found}
    if not others:
        return
    wanted = ("rsum", "t2v R@1", "t2v R@10", "v2t R@1", "v2t R@10", "swapped pairs")
    names = [name for name in wanted if all(name in found["intervals"] for found in others.values())]
    first = next(iter(others.values()))["variant"]
    table = Table(f"less {first}", *names, "seeds", box=None)
    for variant, found in others.items():
        cells = ["{:+.1f} [{:.1f}, {:.1f}]".format(*found["intervals"][name]) for name in names]
        table.add_row(variant, *cells, str(len(found["seeds"])))
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
