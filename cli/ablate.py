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
@click.option("--work-dir", required=True, type=click.Path(path_type=Path), help="The folder for all runs.")
@set_option
@click.option("--seeds", default="0,1,2", show_default=True, help="The seeds to train each variant with.")
@click.option("--variant", "only", multiple=True, metavar="NAME", help="Train only this variant; repeat for more.")
@click.option(
    "--split", default="test", show_default=True, help="The split to report; checkpoints are chosen on data.val."
)
@click.option("--merge", "merged", is_flag=True, help="Treat equal captions as one query, as amex eval does.")
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
    """Train the variants of a configuration, and compare them.

    Every variant is trained with several seeds. Printed are the mean and the standard deviation, and the difference of
    each variant to the unchanged configuration (default), with a 95 percent interval over queries and seeds. The file
    of the configuration lists variants = {"name": ["section.key=value", ...], ...}. Finished runs are not repeated,
    unless the configuration, the features, the manifest or its role graphs have changed.

    \b
    amex ablate amenet_shapes --store shapes.zarr --work-dir ablation --seeds 0,1,2
    """
    from ..train.config import load_config

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise click.UsageError(f"--seeds takes numbers, as in 0,1,2, got {seeds!r}") from error
    load_config(which, settings)
    store, manifest_path = store_and_manifest(dataset, root, store, manifest_path)
    from ..train.ablate import Sources, table_path
    from ..train.ablate import ablate as run

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
    """Print a table of the variants: mean ± standard deviation of the main figures."""
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
    """Print a table of the difference of each variant to the first, with its interval."""
    from rich.table import Table

    others = {variant: entry["against"] for variant, entry in results.items() if "against" in entry}
    for variant, comparison in others.items():
        if problem := comparison.get("problem"):
            click.echo(f"{variant} is not compared with {comparison['variant']}: {problem}")
    others = {variant: comparison for variant, comparison in others.items() if "intervals" in comparison}
    if not others:
        return
    wanted = ("rsum", "t2v R@1", "t2v R@10", "v2t R@1", "v2t R@10", "swapped pairs")
    names = [name for name in wanted if all(name in comparison["intervals"] for comparison in others.values())]
    first = next(iter(others.values()))["variant"]
    table = Table(f"less {first}", *names, "seeds", box=None)
    for variant, comparison in others.items():
        cells = ["{:+.1f} [{:.1f}, {:.1f}]".format(*comparison["intervals"][name]) for name in names]
        table.add_row(variant, *cells, str(len(comparison["seeds"])))
    console().print(table)


def ablation_galleries(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines about the gallery: one for all variants, or one each if they read different streams."""
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
