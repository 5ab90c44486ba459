"""``amex features verify``, ``compact``, ``cp``, ``merge`` and ``rm``: maintain a store."""

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
from ..options import json_option
from ..parameters import MANIFEST, POSITIVE, STORAGE_PATH, STORE
from .options import store_argument


@contextlib.contextmanager
def bytes_bar() -> Iterator[Any]:
    """Show a progress bar of bytes, with the rate and the remaining time."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with progress_bar(*columns) as progress:
        yield progress


def shows(progress: Any, what: str) -> Callable[[int, int], None]:
    """Add a task to a progress bar; return a function that updates it."""
    task = progress.add_task(printable(what), total=None)
    return lambda done, total: progress.update(task, completed=done, total=total)


@click.command("verify")
@store_argument
@click.option("--quick", is_flag=True, help="Do not read rows: compare the names and sizes of their files.")
@click.option("--prune", is_flag=True, help="Also delete leftovers of interrupted runs. Do not use it during a run.")
@click.option(
    "--repair",
    is_flag=True,
    help="First rebuild what needs no videos: metadata of groups, seals, problems.json. `amex extract --repair` does "
    "this too, and extracts damaged parts again.",
)
@json_option
def features_verify(store: Path, quick: bool, prune: bool, repair: bool, as_json: bool) -> None:
    """Compare every byte with its checksum.

    Exits with 1 if something is damaged.

    \b
    amex features verify my.zarr
    amex features verify my.zarr --repair
    """
    from ...features import repair_metadata, verify_store
    from ...features.care.verify import files_without_checksum
    from ...storage import reachable, storage_at

    say: Callable[[str], object] = (lambda text: None) if as_json else click.echo
    parts, size, kinds = 0, 0, Counter[str]()
    damages: list[dict[str, Any]] = []
    begun = time.monotonic()
    with reachable(store), bytes_bar() as progress:
        rebuilt = repair_metadata(store) if repair else []
        for path in rebuilt:
            what = "removed; the next amex extract writes it" if path == "problems.json" else "made anew"
            say(f"{path}: {what}")
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
        unsealed = [] if kinds["metadata"] else files_without_checksum(store)
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
            "repaired": rebuilt,
            "without_checksum": unsealed,
        }
        click.echo(json.dumps(record, indent=1))
    if kinds:
        raise AmexError(
            f"{plural(kinds.total(), 'damage')} in {store}: run the same amex extract command with --repair; "
            "amex features verify --repair rebuilds what needs no videos"
        )
    say(f"{store} is intact{', as far as --quick checks' if quick else ''}")


@click.command("compact")
@store_argument
@click.argument("streams", metavar="[STREAM]...", nargs=-1)
@click.option(
    "--part-mb",
    default=256.0,
    show_default=True,
    type=POSITIVE,
    help="MB of rows per new part. They are held in memory until the part is written.",
)
@click.option("--old", is_flag=True, help="Also rewrite large parts of older formats, for faster reads.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and write nothing.")
@json_option
def features_compact(
    store: Path, streams: tuple[str, ...], part_mb: float, old: bool, dry_run: bool, as_json: bool
) -> None:
    """Join small parts of streams, and drop replaced rows.

    Extraction, training and readers may run at the same time. A second compaction does nothing. Damaged parts are
    reported and not changed; the exit status is then 1.

    \b
    amex features compact my.zarr
    amex features compact my.zarr r2plus1d_18 --dry-run
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
    refuse_damaged({**unreadable, **{name: entry["damaged"] for name, entry in record.items()}}, "are not changed")


def rewritten(entry: dict[str, Any], are: str) -> str:
    """Describe how many parts and bytes a stream had before and has after a compaction."""
    before = f"{plural(entry['parts_before'], 'part')}, {entry['bytes_before'] / 1e6:,.2f} MB"
    if (entry["parts_before"], entry["bytes_before"]) == (entry["parts_after"], entry["bytes_after"]):
        return f"nothing to do, {before}"
    about = "about " if are == "would be" else ""
    after = f"{plural(entry['parts_after'], 'part')}, {about}{entry['bytes_after'] / 1e6:,.2f} MB"
    dropped = f"; {plural(entry['dropped'], 'entry')} dropped" if entry["dropped"] else ""
    return f"{before} {are} {after}{dropped}"


def refuse_damaged(damaged: dict[str, dict[str, str]], became: str) -> None:
    """Print damaged parts on standard error, and raise an AmexError if there are any."""
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
    "--manifest",
    "manifest_path",
    type=MANIFEST,
    help="Copy only its clips; of text streams its captions.  [default: all]",
)


@click.command("cp")
@store_argument
@click.argument("target", metavar="DEST", type=STORAGE_PATH)
@manifest_option
@click.option("--stream", "streams", multiple=True, help="A stream to copy; repeat for more.  [default: all]")
@json_option
def features_cp(store: Path, target: Path, manifest_path: Path | None, streams: tuple[str, ...], as_json: bool) -> None:
    """Copy streams, or clips of a manifest, into another store.

    DEST is created, or added to. Failures and commit records are copied too. After an interrupt, the same command
    resumes.

    \b
    amex features cp my.zarr s3://bucket/my.zarr --stream r2plus1d_18
    amex features cp my.zarr small.zarr --manifest test.jsonl
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
    """Print how many clips of a manifest a store lacks; raise an AmexError if it lacks all."""
    from ...features import open_store

    present: set[str] = set()
    of_captions = False
    for stream in open_store(store, skip_damaged=True).values():
        of_text = stream.spec["output"].get("of") == "captions"
        ids = list(chosen["captions" if of_text else "clips"])
        matches = [clip_id for clip_id in ids if stream.state(clip_id) != "absent"]
        of_captions |= of_text and bool(matches)
        present.update([] if of_text else matches)
    if not present and not of_captions:
        raise AmexError(f"{store} has no features of {manifest}")
    if missing := len(chosen["clips"] - present):
        click.echo(f"{manifest}: {store} has no features of {plural(missing, 'clip')}", err=True)


@click.command("merge")
@click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=STORE)
@click.option("--into", "target", required=True, type=STORAGE_PATH, help="The store to create, or to add to.")
@json_option
def features_merge(stores: tuple[Path, ...], target: Path, as_json: bool) -> None:
    """Join stores into one, such as those of several machines.

    Parts are copied unchanged, and every byte is compared. The STOREs are not changed. A clip that is in several stores
    counts once. After an interrupt, the same command resumes.

    \b
    amex features merge a.zarr b.zarr --into all.zarr
    """
    copy_stores(stores, target, as_json)


def copy_stores(stores: tuple[Path, ...] | list[Path], target: Path, as_json: bool, **chosen: Any) -> None:
    """Copy stores into one, and print what was copied."""
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
                existing = f", {entry.known:,} existed already" if entry.known else ""
                size = f"{plural(entry.parts, 'part')}, {entry.bytes / 1e6:,.2f} MB"
                click.echo(
                    f"{printable(str(store))}: stream {name}, {plural(entry.clips, 'clip')} copied{existing} ({size})"
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
    help="Remove clips from STREAM, or from all streams: a file of ids, one a line, or a manifest; - is stdin.",
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

    Removed clips and failures are absent afterwards: amex extract extracts them again if its manifest has them. Remove
    a stream only while no program reads it.
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
    """Describe the clips and failures of a stream."""
    clips, failures = entry["clips"], entry["failures"]
    counts = [plural(clips, "clip")] * bool(clips or not failures) + [plural(failures, "failure")] * bool(failures)
    return " and ".join(counts)


def read_ids(file: IO[str]) -> list[str]:
    """Return the clip ids of a file: one a line, or those of a manifest."""
    try:
        lines = [line for line in file.read().removeprefix("\ufeff").split("\n") if line]
        if not all(line.startswith("{") for line in lines):
            return lines
        return [str(json.loads(line)["clip_id"]) for line in lines]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = first_line(error)
        raise AmexError(f"{file.name} is neither a manifest nor a text of one clip id a line: {reason}") from error


def remove_whole(store: Path, stream: str, yes: bool) -> dict[str, Any]:
    """Remove a stream; return its counts."""
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
    """Remove clips from one stream or from all; return the counts by stream, and the unknown ids."""
    from ...features import StoreError, open_store, remove_clips
    from ...storage import reachable

    opened = open_store(store, skip_damaged=True)
    unique_ids = dict.fromkeys(ids)
    removed: dict[str, Any] = {}
    unreadable: dict[str, Any] = {}
    unknown = set(unique_ids)
    for name in [stream] if stream else list(opened):
        try:
            states = Counter(map(opened[name].state, unique_ids))
        except StoreError as error:
            if stream:
                raise
            unreadable[name] = {"clips": 0, "failures": 0, "damaged": {"": str(error)}}
            continue
        unknown -= {clip_id for clip_id in unknown if opened[name].state(clip_id) != "absent"}
        removed[name] = {"clips": states["done"] + states["empty"], "failures": states["failed"], "damaged": {}}
    count = len(unique_ids) - len(unknown)
    if unknown:
        first = printable(min(unknown)) + (", ..." if len(unknown) > 1 else "")
        # For many unknown ids, such as those of another manifest, the search for similar ids would take long.
        candidates = (
            dict.fromkeys(itertools.chain.from_iterable(opened[name] for name in removed)) if len(unknown) == 1 else ()
        )
        near = did_you_mean(min(unknown), candidates)
        click.echo(
            f"{len(unknown):,} of {plural(len(unique_ids), 'id')} not in {stream or store}: {first}{near}", err=True
        )
    if count and not yes:
        each = ", ".join(f"{counted(entry)} of {name}" for name, entry in removed.items())
        click.confirm(f"remove {plural(count, 'clip')} from {store} ({each})?", abort=True, err=True)
    if not unique_ids:
        raise AmexError("there are no ids of clips to remove")
    with reachable(store), bytes_bar() as bar:
        for name, entry in removed.items():
            entry["damaged"] = remove_clips(store, name, unique_ids, progress=shows(bar, name)).damaged
    if not count:
        raise AmexError(f"nothing to remove: none of these ids is in {stream or store}")
    return {"removed": {**removed, **unreadable}, "unknown": sorted(unknown)}
