"""Share a store: a card that says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..options import json_option
from ..parameters import STORAGE_PATH
from .look import fed
from .options import store_argument


@click.command("card")
@store_argument
@click.option("--out", type=STORAGE_PATH, help="The file to write.  [default: README.md in the store]")
@click.option("--force", is_flag=True, help="Replace a file that was edited by hand.")
@json_option
def features_card(store: Path, out: Path | None, force: bool, as_json: bool) -> None:
    """Write README.md for a store that you share.

    It describes the streams and their settings, the weights and what is known of their licences, versions, a checksum,
    and how to read the store. Fields that you must fill in are marked. With --json the facts are printed, and a file is
    written only with --out.

    \b
    amex features card my.zarr
    """
    from ...features import describe_store, open_store, render_card, write_card

    facts = describe_store(open_store(store))
    for stream in facts["streams"].values():
        stream["input"] = described_input(stream["spec"])
        stream["known_weights"] = recognised(stream)
    path = out or (None if as_json else store / "README.md")
    if path is not None:
        write_card(render_card(facts), path, force=force)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        click.echo(f"{path}: fill in the licences and which videos these are")


def described_input(spec: dict[str, Any]) -> str:
    """Describe the input of a stream's encoder; return an empty text for the spec of another program."""
    try:
        return fed(spec)
    except (KeyError, TypeError):
        return ""


def recognised(stream: dict[str, Any]) -> dict[str, str]:
    """Return what is known about the weights of a stream."""
    if "weights_sha256" not in stream["spec"]:
        return {}
    from ...extract.encoders import known_weights

    return known_weights(stream["spec"], {"weights": stream["weights"]})
