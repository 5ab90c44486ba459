"""Keep a store intact: verify it, repair what needs no videos, remove what is not wanted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from ...console import console
from ...errors import AmexError, plural
from .options import store_argument


@click.command("verify")
@store_argument
@click.option("--prune", is_flag=True, help="Also remove what interrupted runs left behind. Not while one is running.")
@click.option(
    "--repair",
    is_flag=True,
    help="First make anew what needs no videos: metadata of groups, seals, problems.json. `amex extract --repair` does "
    "that too, and computes damaged parts again.",
)
def features_verify(store: Path, prune: bool, repair: bool) -> None:
    """Read every byte and compare it with its checksum. Exits with 1 if anything is damaged or lost."""
    from rich.progress import Progress

    from ...features import mend, verify_store
    from ...features.verify import without_seal
    from ...storage import reachable, storage_at

    parts, kinds = 0, Counter[str]()
    with reachable(store), Progress(console=console(stderr=True), transient=True) as progress:
        for path in mend(store) if repair else ():
            made = "removed; the next amex extract writes it" if path == "problems.json" else "made anew"
            click.echo(f"{path}: {made}")
        task = progress.add_task(str(store), total=sum(1 for _ in store.glob("*/commits/*.json")))
        for damage in verify_store(store):
            if damage is None or damage.kind == "part":
                parts += 1
                progress.advance(task)
            if damage is None:
                continue
            click.echo(str(damage))
            kinds[damage.kind] += 1
            if prune and damage.kind == "leftover":
                storage_at(store / damage.path).remove()
        unsealed = [] if kinds["metadata"] else without_seal(store)
    if count := kinds.pop("leftover", 0):
        harmless = "does no harm; --prune removes it" if count == 1 else "do no harm; --prune removes them"
        click.echo(f"{plural(count, 'leftover')} {'removed' if prune else harmless}")
    click.echo(
        f"compared every byte of {plural(parts, 'part')}, and records, specs and metadata; a part whose rows and "
        "record are both gone leaves no trace here: amex extract computes it again"
    )
    if unsealed:
        click.echo(f"written by an older amex without a checksum, so only known to be readable: {', '.join(unsealed)}")
    if kinds:
        raise AmexError(
            f"{plural(kinds.total(), 'damage')} in {store}: run the same amex extract command with --repair; "
            "what needs no videos, amex features verify --repair makes anew"
        )
    click.echo(f"{store} is intact")


@click.command("rm")
@store_argument
@click.argument("stream")
@click.option("--yes", is_flag=True, help="Do not ask.")
def features_rm(store: Path, stream: str, yes: bool) -> None:
    """Remove STREAM, all its features, from a store. Not while a run writes to it or a training reads it."""
    from ...features import StoreError, open_store, remove_stream
    from ...storage import reachable

    opened = open_store(store, skip_damaged=True)
    try:
        contents = opened[stream]
        what = f"{plural(len(contents), 'clip')}, {plural(contents.rows, 'row')}"
    except StoreError as error:
        if stream not in opened:
            raise
        what = f"which cannot be read: {error}"
    if not yes:
        click.confirm(f"remove {stream} from {store} ({what})?", abort=True)
    with reachable(store):
        remove_stream(store, stream)
    click.echo(f"removed {stream} from {store}")
