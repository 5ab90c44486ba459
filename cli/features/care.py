"""Keep a store in order: verify and repair it, compact it, copy and merge it, remove what is not wanted."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import click

from ...console import progress_bar
from ...errors import AmexError, did_you_mean, first_line, plural, printable
from ..options import FILE, POSITIVE, STORAGE_PATH, json_option
from .options import store_argument


@contextlib.contextmanager
def bytes_bar() -> Iterator[Any]:
    """A progress bar of bytes, with their rate and how long the rest will take."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with progress_bar(*columns) as progress:
        yield progress


def shows(progress: Any, what: str) -> Callable[[int, int], None]:
    """A task of a bar, as functions of the store report what is done."""
    task = progress.add_task(printable(what), total=None)
    return lambda done, total: progress.update(task, completed=done, total=total)


@click.command("verify")
@store_argument
@click.option("--quick", is_flag=True, help="Of rows compare only the names and sizes of files; read all the rest.")
@click.option("--prune", is_flag=True, help="Also remove what interrupted runs left behind. Not while one is running.")
@click.option(
    "--repair",
    is_flag=True,
    help="First make anew what needs no videos: metadata of groups, seals, problems.json. `amex extract --repair` does "
    "that too, and computes damaged parts again.",
)
@json_option
def features_verify(store: Path, quick: bool, prune: bool, repair: bool, as_json: bool) -> None:
    """Compare every byte with its checksum. Exits with 1 on damage."""
    from ...features import mend, verify_store
    from ...features.care.verify import without_seal
    from ...storage import reachable, storage_at

    say: Callable[[str], object] = (lambda text: None) if as_json else click.echo
    parts, size, kinds = 0, 0, Counter[str]()
    damages: list[dict[str, Any]] = []
    begun = time.monotonic()
    with reachable(store), bytes_bar() as progress:
        mended = mend(store) if repair else []
        for path in mended:
            made = "removed; the next amex extract writes it" if path == "problems.json" else "made anew"
            say(f"{path}: {made}")
        task = progress.add_task(printable(str(store)), total=sum(storage_at(store).sizes().values()))

        def advance(count: int) -> None:
            nonlocal size
            size += count
            progress.advance(task, count)

        for damage in verify_store(store, quick=quick, progress=advance):
            parts += damage is None or damage.kind == "part"
            if damage is None:
                continue
            say(str(damage))
            kinds[damage.kind] += 1
            damages.append(dataclasses.asdict(damage))
            if prune and damage.kind == "leftover":
                storage_at(store / damage.path).remove()
        unsealed = [] if kinds["metadata"] else without_seal(store)
    seconds = time.monotonic() - begun
    leftovers = kinds.pop("leftover", 0)
    if leftovers:
        harmless = "does no harm; --prune removes it" if leftovers == 1 else "do no harm; --prune removes them"
        say(f"{plural(leftovers, 'leftover')} {'removed' if prune else harmless}")
    amount = f"{plural(parts, 'part')} ({size / 1e6:,.1f} MB"
    if quick:
        say(
            f"compared names and sizes of the files of {amount}), and every byte of records, specs, metadata, offsets "
            "and ids; rows were not read"
        )
    else:
        say(
            f"compared every byte of {amount}, {size / 1e6 / max(seconds, 1e-3):,.0f} MB/s), and records, specs and "
            "metadata; a part whose rows and record are both gone leaves no trace here: amex extract computes it again"
        )
    if unsealed:
        say(f"written by an older amex without a checksum, so only known to be readable: {', '.join(unsealed)}")
    if as_json:
        record = {
            "intact": not kinds,
            "quick": quick,
            "parts": parts,
            "bytes": size,
            "seconds": round(seconds, 3),
            "damage": [entry for entry in damages if entry["kind"] != "leftover"],
            "leftovers": [entry["path"] for entry in damages if entry["kind"] == "leftover"],
            "pruned": prune,
            "repaired": mended,
            "without_checksum": unsealed,
        }
        click.echo(json.dumps(record, indent=1))
    if kinds:
        raise AmexError(
            f"{plural(kinds.total(), 'damage')} in {store}: run the same amex extract command with --repair; "
            "what needs no videos, amex features verify --repair makes anew"
        )
    say(f"{store} is intact{', as far as --quick looks' if quick else ''}")


@click.command("compact")
@store_argument
@click.argument("streams", metavar="[STREAM]...", nargs=-1)
@click.option(
    "--part-mb",
    default=256.0,
    show_default=True,
    type=POSITIVE,
    help="MB of rows a new part. They are in memory until it is written.",
)
@click.option(
    "--old", is_flag=True, help="Rewrite large parts of older formats too, for the layout that reads fastest."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@json_option
def features_compact(
    store: Path, streams: tuple[str, ...], part_mb: float, old: bool, dry_run: bool, as_json: bool
) -> None:
    """Join small parts of streams, and drop rows that do not count.

    Runs, trainings and readers may go on beside it. A second compaction does nothing. Damaged parts are named and left
    as they are; the exit status is 1 then.
    """
    from ...features import StoreError, compact, open_store
    from ...storage import reachable

    record: dict[str, Any] = {}
    unreadable: dict[str, dict[str, str]] = {}
    with reachable(store), bytes_bar() as bar:
        for name in streams or list(open_store(store)):
            settings = {"part_bytes": round(part_mb * 2**20), "old": old, "trial": dry_run}
            try:
                done = compact(store, name, **settings, progress=shows(bar, name))
            except StoreError as error:
                if name in streams:
                    raise
                unreadable[name] = {"": str(error)}
                continue
            record[name] = dataclasses.asdict(done)
            if not as_json:
                click.echo(f"{name}: {rewritten(record[name], 'would be' if dry_run else 'are now')}")
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "streams": record}, indent=1))
    refuse_damaged({**unreadable, **{name: entry["damaged"] for name, entry in record.items()}}, "are as they were")


def rewritten(entry: dict[str, Any], are: str) -> str:
    """What became of the parts of a stream, in words."""
    before = f"{plural(entry['parts_before'], 'part')}, {entry['bytes_before'] / 1e6:,.2f} MB"
    if (entry["parts_before"], entry["bytes_before"]) == (entry["parts_after"], entry["bytes_after"]):
        return f"nothing to do, {before}"
    about = "about " if are == "would be" else ""
    after = f"{plural(entry['parts_after'], 'part')}, {about}{entry['bytes_after'] / 1e6:,.2f} MB"
    dropped = f"; {plural(entry['dropped'], 'entry')} dropped" if entry["dropped"] else ""
    return f"{before} {are} {after}{dropped}"


def refuse_damaged(damaged: dict[str, dict[str, str]], became: str) -> None:
    """Names damaged parts, by stream and part, on standard error, and ends with an error if there are any."""
    lines = [
        f"{'/'.join(filter(None, (stream, part)))}: {reason}"
        for stream, of in damaged.items()
        for part, reason in of.items()
    ]
    for line in lines:
        click.echo(printable(line), err=True)
    if lines:
        raise AmexError(f"{len(lines):,} damaged and {became}; amex extract ... --repair computes damaged parts again")


manifest_option = click.option(
    "--manifest", "manifest_path", type=FILE, help="Copy the clips in it alone; of text its captions.  [default: all]"
)


@click.command("cp")
@store_argument
@click.argument("target", metavar="DEST", type=STORAGE_PATH)
@manifest_option
@click.option("--stream", "streams", multiple=True, help="A stream to copy; repeat for more.  [default: all]")
@json_option
def features_cp(store: Path, target: Path, manifest_path: Path | None, streams: tuple[str, ...], as_json: bool) -> None:
    """Copy streams, or clips of a manifest, into another store.

    DEST is made, or added to. Failures and all that is recorded of clips are copied with them. The same command goes on
    where an interrupted one stopped.
    """
    from ...manifests import read_manifest

    chosen: dict[str, Any] = {}
    if manifest_path is not None:
        clips = read_manifest(manifest_path)
        chosen["clips"] = {clip.clip_id for clip in clips}
        chosen["captions"] = {caption for clip in clips for caption in clip.captions}
        say_lacking(store, manifest_path, chosen)
    copy_stores([store], target, as_json, names=streams, **chosen)


def say_lacking(store: Path, manifest: Path, chosen: dict[str, set[str]]) -> None:
    """Says on standard error how many clips of a manifest a store lacks; refuses a manifest of which it has nothing."""
    from ...features import open_store

    known: set[str] = set()
    of_captions = False
    for stream in open_store(store, skip_damaged=True).values():
        of_text = stream.spec["output"].get("of") == "captions"
        wanted = list(chosen["captions" if of_text else "clips"])
        matches = [clip_id for clip_id in wanted if stream.state(clip_id) != "absent"]
        of_captions |= of_text and bool(matches)
        known.update([] if of_text else matches)
    if not known and not of_captions:
        raise AmexError(f"{store} has nothing of {manifest}")
    if lacking := len(chosen["clips"] - known):
        click.echo(f"{manifest}: {store} has nothing of {plural(lacking, 'clip')}", err=True)


@click.command("merge")
@click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=STORAGE_PATH)
@click.option("--into", "target", required=True, type=STORAGE_PATH, help="The store to make, or to add to.")
@json_option
def features_merge(stores: tuple[Path, ...], target: Path, as_json: bool) -> None:
    """Join stores into one, as those of several machines.

    Parts are copied as they are, and every byte is compared. The STOREs stay as they are. A clip that several have
    counts once. The same command goes on where an interrupted one stopped.
    """
    copy_stores(stores, target, as_json)


def copy_stores(stores: tuple[Path, ...] | list[Path], target: Path, as_json: bool, **chosen: Any) -> None:
    """Copies stores into one, and says what became of them."""
    from ...features import check_mergeable, copy_store
    from ...storage import reachable

    record: dict[str, Any] = {}
    damaged: dict[str, dict[str, str]] = {}
    check_mergeable(stores, target, chosen.get("names", ()))
    with reachable(target), bytes_bar() as bar:
        for store in stores:
            copied = copy_store(store, target, **chosen, progress=shows(bar, str(store)))
            problem = copied.pop("", None)
            record[str(store)] = {name: dataclasses.asdict(entry) for name, entry in copied.items()}
            damaged |= {f"{store}/{name}": entry.damaged for name, entry in copied.items()}
            damaged |= {str(store): problem.damaged} if problem else {}
            for name, entry in copied.items() if not as_json else ():
                known = f", {entry.known:,} {'was' if entry.known == 1 else 'were'} there" if entry.known else ""
                size = f"{plural(entry.parts, 'part')}, {entry.bytes / 1e6:,.2f} MB"
                click.echo(
                    f"{printable(str(store))}: stream {name}, {plural(entry.clips, 'clip')} copied{known} ({size})"
                )
    if as_json:
        click.echo(json.dumps({"into": str(target), "stores": record}, indent=1))
    refuse_damaged(damaged, "not copied")


@click.command("rm")
@store_argument
@click.argument("stream", required=False)
@click.argument("clips", metavar="[CLIP]...", nargs=-1)
@click.option(
    "--clips",
    "file",
    type=click.File(encoding="utf-8"),
    help="Remove these, from STREAM or from all: a file of ids, one a line, or a manifest; - for standard input.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def features_rm(
    store: Path, stream: str | None, clips: tuple[str, ...], file: IO[str] | None, yes: bool, as_json: bool
) -> None:
    """Remove a stream, or clips, from a store.

    \b
    amex features rm s.zarr r2plus1d_18                  # the stream
    amex features rm s.zarr r2plus1d_18 a.mp4 b.mp4      # clips of it
    amex features rm s.zarr --clips ids.txt              # clips of all streams

    Clips that are removed, or their failures, are absent then: amex extract computes them again if its manifest has
    them. Remove a stream only while nothing uses it.
    """
    ids = [*clips, *(read_ids(file) if file else ())]
    if file is None and not ids:
        if stream is None:
            raise click.UsageError("say which STREAM to remove, or --clips FILE")
        record = remove_whole(store, stream, yes)
    else:
        record = remove_some(store, stream, ids, yes)
    if as_json:
        click.echo(json.dumps(record, indent=1))
    else:
        readable = ((name, entry) for name, entry in record["removed"].items() if "" not in entry["damaged"])
        for name, entry in readable:
            click.echo(f"removed {f'{counted(entry)} of {name}' if ids else name} from {store}")
    refuse_damaged({name: entry["damaged"] for name, entry in record["removed"].items()}, "not rewritten")


def counted(entry: dict[str, Any]) -> str:
    """Clips and failures of a stream, in words."""
    clips, failures = entry["clips"], entry["failures"]
    counts = [plural(clips, "clip")] * bool(clips or not failures) + [plural(failures, "failure")] * bool(failures)
    return " and ".join(counts)


def read_ids(file: IO[str]) -> list[str]:
    """The clip ids in a file: one a line, or those of a manifest's lines."""
    try:
        lines = [line for line in file.read().removeprefix("\ufeff").split("\n") if line]
        if not all(line.startswith("{") for line in lines):
            return lines
        return [str(json.loads(line)["clip_id"]) for line in lines]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = first_line(error)
        raise AmexError(f"{file.name} is neither a manifest nor a text of one clip id a line: {reason}") from error


def remove_whole(store: Path, stream: str, yes: bool) -> dict[str, Any]:
    """Removes a stream; returns what was in it."""
    from ...features import StoreError, open_store, remove_stream
    from ...storage import reachable

    opened = open_store(store, skip_damaged=True)
    counts = {"clips": 0, "failures": 0}
    try:
        contents = opened[stream]
        counts = {"clips": len(contents), "failures": len(contents.failures)}
        what = f"{plural(len(contents), 'clip')}, {plural(contents.rows, 'row')}"
        what += f", {plural(len(contents.damaged), 'damaged part')}" if contents.damaged else ""
    except StoreError as error:
        if stream not in opened:
            raise
        what = f"which cannot be read: {error}"
    if not yes:
        click.confirm(f"remove {stream} from {store} ({what})?", abort=True, err=True)
    with reachable(store):
        remove_stream(store, stream)
    return {"removed": {stream: {**counts, "damaged": {}}}, "unknown": []}


def remove_some(store: Path, stream: str | None, ids: list[str], yes: bool) -> dict[str, Any]:
    """Removes clips from a stream, or from all; returns how many of each, and the ids that are in none."""
    from ...features import StoreError, open_store, remove_clips
    from ...storage import reachable

    opened = open_store(store, skip_damaged=True)
    wanted = dict.fromkeys(ids)
    removed: dict[str, Any] = {}
    unreadable: dict[str, Any] = {}
    unknown = set(wanted)
    for name in [stream] if stream else list(opened):
        try:
            states = Counter(map(opened[name].state, wanted))
        except StoreError as error:
            if stream:
                raise
            unreadable[name] = {"clips": 0, "failures": 0, "damaged": {"": str(error)}}
            continue
        unknown -= {clip_id for clip_id in unknown if opened[name].state(clip_id) != "absent"}
        removed[name] = {"clips": states["done"] + states["empty"], "failures": states["failed"], "damaged": {}}
    count = len(wanted) - len(unknown)
    if unknown:
        first = printable(min(unknown)) + (", ..." if len(unknown) > 1 else "")
        # One alone may be a slip; of many, such as those of another manifest, the search for near ones would take long.
        known = (
            dict.fromkeys(itertools.chain.from_iterable(opened[name] for name in removed)) if len(unknown) == 1 else ()
        )
        near = did_you_mean(min(unknown), known)
        click.echo(f"{len(unknown):,} of {plural(len(wanted), 'id')} not in {stream or store}: {first}{near}", err=True)
    if count and not yes:
        each = ", ".join(f"{counted(entry)} of {name}" for name, entry in removed.items())
        click.confirm(f"remove {plural(count, 'clip')} from {store} ({each})?", abort=True, err=True)
    if not wanted:
        raise AmexError("there are no ids of clips to remove")
    with reachable(store), bytes_bar() as bar:
        for name, entry in removed.items():
            entry["damaged"] = remove_clips(store, name, wanted, progress=shows(bar, name)).damaged
    if not count:
        raise AmexError(f"nothing to remove: none of these ids is in {stream or store}")
    return {"removed": {**removed, **unreadable}, "unknown": sorted(unknown)}
