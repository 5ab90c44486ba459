"""``amex train export``: a trained model for others."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import json_option
from .parameters import CHECKPOINT
from .trained import store_option


@click.command("export")
@click.argument("path", metavar="RUN", type=CHECKPOINT)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--onnx",
    is_flag=True,
    help="Also write ONNX graphs of the text and the video encoder, for models whose score is a dot product.",
)
@store_option
@json_option
def export(path: Path, out: Path, onnx: bool, store: Path | None, as_json: bool) -> None:
    """Export a trained model as a folder for others.

    The folder has the weights as safetensors, the configuration, the vocabulary, and a model card: the training data,
    the figures that amex eval wrote beside the checkpoint, and the settings of the streams. RUN is the work folder of a
    run, or a checkpoint in it. `amex.train.load` reads the folder, without store and manifest. Docs:
    docs/reference/python.md.

    \b
    amex train export run --out my-model
    amex train export run --out my-model --onnx
    """
    from ..errors import AmexError
    from ..features import describe_stream, open_store
    from ..storage import open_path
    from ..train.checkpoint import load_checkpoint
    from ..train.export import write_export
    from .features.publish import described_input, recognised

    checkpoint = load_checkpoint(path)
    where = store or open_path(checkpoint.sources["store"])
    if store is None and not where.exists():
        raise AmexError(f"the store of the training run, {where}, is gone: give one with --store")
    opened = open_store(where)
    checkpoint.check_features(opened)
    facts = {}
    for name in checkpoint.fingerprints:
        facts[name] = describe_stream(opened[name])
        facts[name] |= {"input": described_input(facts[name]["spec"]), "known_weights": recognised(facts[name])}
    files = write_export(checkpoint, opened, out, facts=facts, onnx=onnx)
    if as_json:
        click.echo(json.dumps({"folder": str(out), "files": files}, indent=1))
    else:
        click.echo(f"{out}: {', '.join(files)}; fill in what README.md leaves to you: the licence, what it is for")
