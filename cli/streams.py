"""``amex streams``: the networks, presets and recipes of ``amex extract``."""

from __future__ import annotations

import click

from ..console import print_table


@click.command()
@click.option("--recipes", is_flag=True, help="Print the source, the options and the deviations of each recipe.")
def streams(recipes: bool) -> None:
    """List streams, presets and recipes of `amex extract`.

    D is the length of a feature. A preset says how a video is sampled and resized for a network: it takes a window of
    `frames` frames, each `step` frames after the last, every `stride` frames.

    \b
    amex streams --recipes
    amex extract my_videos --store my.zarr --stream r2plus1d_18
    amex extract my_videos --store my.zarr --stream mine=timm:resnet50
    amex extract my_videos --store my.zarr --recipe clip4clip
    """
    from ..extract.encoders import RECIPES

    if recipes:
        for name, recipe in RECIPES.items():
            click.echo(f"{name}: {recipe.source}\n  {' '.join(recipe.arguments)}\n  {recipe.note}\n")
        return

    from ..extract.encoders import ALIASES, DEFAULT_MODELS, DEFAULT_PRESET, KINDS, NETWORKS, PRESETS

    print_table(
        ("--stream", "D", "default preset", "published weights"),
        [
            (name, str(network.dim), DEFAULT_PRESET[name], network.published.source)
            for name, network in NETWORKS.items()
        ],
    )
    click.echo()
    print_table(("--stream for objects and text", "model"), {**ALIASES, **DEFAULT_MODELS}.items())
    click.echo()
    print_table(("--stream NAME=KIND:WHICH", "network"), [(f"NAME={kind}:...", what) for kind, what in KINDS.items()])
    click.echo()
    rows = []
    for name, preset in PRESETS.items():
        sampling = preset.sampling
        rate = (f"{sampling.fps:g}", sampling.at) if sampling.fps else ("native", "")
        rows.append((name, *rate, str(sampling.frames), str(sampling.step), str(sampling.stride), preset.source))
    print_table(("--preset NAME=", "fps", "at", "frames", "step", "stride", "as in"), rows)
    click.echo()
    print_table(("--recipe", "streams"), [(name, ", ".join(recipe.streams)) for name, recipe in RECIPES.items()])
