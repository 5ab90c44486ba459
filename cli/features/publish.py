"""Share a store: a card that says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..options import STORAGE_PATH, json_option
from .look import fed
from .options import store_argument


@click.command("card")
@store_argument
@click.option("--out", type=STORAGE_PATH, help="The file to write.  [default: README.md in the store]")
@click.option("--force", is_flag=True, help="Replace a file that was written or edited by hand.")
@json_option
def features_card(store: Path, out: Path | None, force: bool, as_json: bool) -> None:
    """Write README.md for a store that is shared.

    It has streams and their settings, weights with what is known of their licences, versions, a checksum, and how to
    read the store; what amex cannot know is marked as to be filled in. With --json the facts are printed, and no file
    is written unless --out names one.
    """
    from ...features import describe_store, open_store, render_card, write_card

    facts = describe_store(open_store(store))
    for stream in facts["streams"].values():
        stream["input"] = seen(stream["spec"])
        stream["known_weights"] = recognised(stream)
    path = out or (None if as_json else store / "README.md")
    if path is not None:
        write_card(render_card(facts), path, force=force)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        click.echo(f"{path}: fill in the licences and which videos these are")


def seen(spec: dict[str, Any]) -> str:
    """What a stream's encoder looked at, in words; nothing of a spec that another program made."""
    try:
        return fed(spec)
    except (KeyError, TypeError):
        return ""


def recognised(stream: dict[str, Any]) -> dict[str, str]:
    """What is known of a stream's weights."""
    if "weights_sha256" not in stream["spec"]:
        return {}
    from ...extract.encoders import known_weights

    return known_weights(stream["spec"], {"weights": stream["weights"]})
