"""``amex train`` and ``amex configs``: from what the command line says to a model."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import click

from ..console import print_table
from ..errors import AmexError, did_you_mean, plural
from .export import export
from .options import added, dataset_option, json_option, root_option
from .parameters import MANIFEST, STORE
from .places import store_and_manifest, work_folder
from .trained import strict_option

trained_on_options = added(
    [
        click.option(
            "--store",
            type=STORE,
            help="The features, from `amex extract`.  [default: those of --dataset]",
        ),
        click.option(
            "--manifest",
            "manifest_path",
            type=MANIFEST,
            help="The clips.  [default: those of --dataset, or those that the store was made from]",
        ),
    ]
)

set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change one option, for example --set train.lr=1e-3; repeat for more. `amex configs MODEL` lists all.",
)


@click.command()
@click.argument("name", required=False)
def configs(name: str | None) -> None:
    """List models and configurations, or print one of them.

    The NAME of a configuration prints its file, the NAME of a model its options: each with its default and its meaning,
    followed by those of the objective, the data and the training.

    \b
    amex configs
    amex configs amenet
    """
    from ..train.config import CONFIGS, MODELS, Auto, Config, known_configs, load_config

    if name is None:
        click.echo(f"models: {', '.join(MODELS)}\nconfigurations: {', '.join(known_configs())}")
    elif name in known_configs():
        click.echo((CONFIGS / f"{name}.py").read_text().rstrip())
    elif name in MODELS or name.startswith("python:"):
        rows = []
        config = load_config(name)
        for section in Config.model_fields:
            defaults = getattr(config, section)
            for key, field in type(defaults).model_fields.items():
                default = getattr(defaults, key)
                text = "auto" if default is None and Auto in field.metadata else repr(default)
                rows.append((f"{section}.{key}", text, field.description or ""))
        print_table(("key", "default", "meaning"), rows, narrow=1)
    else:
        names = (*MODELS, *known_configs())
        raise AmexError(f"no configuration is called {name!r}; there is {', '.join(names)}{did_you_mean(name, names)}")


class Train(click.Command):
    """``amex train CONFIG``, and ``amex train export RUN``: no configuration is called export."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> click.Context:
        if args[:1] == ["export"]:
            return export.make_context(f"{info_name} export", args[1:], *more, **extra)
        return super().make_context(info_name, args, *more, **extra)


@click.command(cls=Train)
@click.argument("which", metavar="CONFIG")
@dataset_option
@root_option
@trained_on_options
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path),
    help="The folder for checkpoints and logs.  [default: runs/CONFIG-MANIFEST beside the store]",
)
@set_option
@click.option("--resume", is_flag=True, help="Resume the run in --work-dir exactly; start it if there is none.")
@strict_option
@json_option
def train(
    which: str,
    dataset: str | None,
    root: Path | None,
    store: Path | None,
    manifest_path: Path | None,
    work_dir: Path | None,
    settings: tuple[str, ...],
    resume: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Train a model on the features of a store.

    CONFIG is a model (amenet, hgr, ...; your own: python:MODULE:CLASS), a configuration that comes with amex
    (`amex configs`), or a Python file.
    best.pth is the checkpoint with the best rsum on the validation split, or the last one if the validation split has
    few clips (train.keep).

    \b
    amex train amenet --dataset youcook2
    amex train amenet --store my.zarr

    To export a trained model as a folder for others, see its --help:

    \b
    amex train export RUN --out FOLDER

    Several GPUs, or processes:

    \b
    torchrun --nproc-per-node 4 -m amex.cli train amenet --store S --manifest M --work-dir W
    """
    from ..train.config import load_config

    config = load_config(which, settings)
    store, manifest_path = store_and_manifest(dataset, root, store, manifest_path)
    work_dir = work_dir or work_folder(which, store, manifest_path)
    from ..train.fitting import fit

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
        return  # only the first of several processes prints
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(done) | {"best": str(done.best)}, indent=1))
        return
    figures = "  ".join(
        f"{name} {done.val[name]:.1f}" for name in ("t2v R@1", "t2v R@10", "v2t R@1", "v2t R@10", "rsum")
    )
    val = done.splits["val"]
    if val["coverage"]["clips"] == 1:
        chosen = "of 1 clip, which is too few to judge the model"
    else:
        chosen = "which chose it" if val["keep"] == "best" else "which has too few clips to choose one: it is the last"
    click.echo(
        f"{done.best}: epoch {done.epoch}, {plural(done.parameters, 'parameter')}\n"
        f"on split {config.data.val}, {chosen}: {figures}\n"
        f"Next: amex eval {work_dir}, amex report {work_dir}, amex serve {work_dir}, tensorboard --logdir {work_dir}"
    )
