"""``amex train`` and ``amex configs``: from what the command line says to a model."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import click

from ..console import console
from ..errors import AmexError, did_you_mean
from .options import FILE, STORAGE_PATH, added, dataset_option, json_option, root_option
from .places import store_and_manifest, work_folder
from .trained import strict_option

trained_on_options = added(
    [
        click.option(
            "--store",
            type=STORAGE_PATH,
            help="The features, from `amex extract`.  [default: those of --dataset]",
        ),
        click.option(
            "--manifest",
            "manifest_path",
            type=FILE,
            help="The clips.  [default: those of --dataset, or those that the store was made from]",
        ),
    ]
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
    """List models and configurations, or print the one NAME.

    With the NAME of a configuration print it, of a model what can be set. Every key of a model is listed with its
    default and what it means, those of its data and training after them.
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
        known = (*MODELS, *known_configs())
        raise AmexError(f"no configuration is called {name!r}; there is {', '.join(known)}{did_you_mean(name, known)}")


@click.command()
@click.argument("which", metavar="CONFIG")
@dataset_option
@root_option
@trained_on_options
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path),
    help="Where checkpoints and logs go.  [default: runs/CONFIG-MANIFEST beside the store]",
)
@set_option
@click.option("--resume", is_flag=True, help="Go on with the run in --work-dir, exactly; begin it if there is none.")
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
    """Train a model from a store alone.

    CONFIG is a model (amenet, hgr, ...), a configuration that comes with amex (`amex configs`), or a Python
    file of one. The checkpoint with the best rsum on the validation split is best.pth.

    \b
    amex train amenet --dataset youcook2
    amex train amenet --store my.zarr

    Several GPUs, or processes:

    \b
    torchrun --nproc-per-node 4 -m amex.cli train amenet --store S --manifest M --work-dir W
    """
    from ..train.config import load_config
    from ..train.fit import fit

    config = load_config(which, settings)
    store, manifest_path = store_and_manifest(dataset, root, store, manifest_path)
    work_dir = work_dir or work_folder(which, store, manifest_path)
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
    chosen = (
        "which chose it"
        if done.splits["val"]["coverage"]["clips"] > 1
        else "of 1 clip, which says nothing of the model"
    )
    click.echo(
        f"{done.best}: epoch {done.epoch}, {done.parameters:,} parameters\n"
        f"on split {config.data.val}, {chosen}: {figures}\n"
        f"Next: amex eval {work_dir}, amex report {work_dir}, amex serve {work_dir}, tensorboard --logdir {work_dir}"
    )
