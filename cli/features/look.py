"""What is in a store, and what failed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ...console import console
from ...errors import AmexError, plural, printable
from ..options import FILE, json_option
from ..places import videos_of
from .options import ids_of, skip_damaged_option, store_argument, warn_skipped

WIDEST_ID = 60  # of a column; captions are longer


@click.command("info")
@store_argument
@json_option
def features_info(store: Path, as_json: bool) -> None:
    """Streams with their clips, rows, bytes and settings. Exits with 1 if a commit record is damaged."""
    from ...features import bytes_of, open_store

    opened = open_store(store, skip_damaged=True)
    record = {}
    for name, stream in opened.items():
        parts, decoders = list(stream.index.parts), Counter[str]()
        for part in parts:
            decoders.update(part["decoders"])
        record[name] = {
            "clips": len(stream),
            "failed": len(stream.failures),
            "cut_off_by_damage": len(stream.cut_off()),
            "rows": stream.rows,
            "parts": len(parts),
            "damaged_parts": len(stream.damaged),
            "bytes": sum(map(bytes_of, parts)),
            "decoders": dict(decoders),
            "fingerprint": stream.fingerprint,
            "provenance": stream.provenance,
            "spec": stream.spec,
        }
    if as_json:
        click.echo(json.dumps(record, indent=1))
    else:
        print_info(store, record)
    if damaged := [reason for stream in opened.values() for reason in stream.damaged.values()]:
        parts = f"{plural(len(damaged), 'part')} {'is' if len(damaged) == 1 else 'are'}"
        raise AmexError(f"{parts} damaged and not counted, the first: {damaged[0]}")


def print_info(store: Path, record: dict[str, Any]) -> None:
    """The record of ``features info``, by stream, as text."""
    click.echo(f"{store}: {plural(len(record), 'stream')}" + ("" if record else "; add one with amex extract"))
    for name, entry in record.items():
        output = entry["spec"]["output"]
        failed = f", {entry['failed']:,} failed" if entry["failed"] else ""
        failed += f", {entry['cut_off_by_damage']:,} cut off by damage" if entry["cut_off_by_damage"] else ""
        damaged = f", {plural(entry['damaged_parts'], 'damaged part')}" if entry["damaged_parts"] else ""
        of_text = output.get("of") == "captions"
        arrays = "".join(f", {array}" for array in (*output.get("arrays", ()), *output.get("clip_arrays", ())))
        click.echo(
            f"\n{name}\n  {plural(entry['clips'], 'caption' if of_text else 'clip')}{failed}{damaged}, "
            f"{plural(entry['rows'], 'row')} of {output['dtype']}{output['shape']}{arrays}, "
            f"{entry['bytes'] / 1e6:,.2f} MB in {plural(entry['parts'], 'part')}\n"
            f"  {described(entry)}"
        )
        if not of_text and "source" not in entry["spec"]:
            served = ", ".join(f"{decoder}: {count:,}" for decoder, count in entry["decoders"].items())
            click.echo(f"  decoded by {served or 'nothing yet'}")
        click.echo(f"  fingerprint {entry['fingerprint'][:16]}")


def described(entry: dict[str, Any]) -> str:
    """How a stream was made, in words; a store that another program made may have a spec of its own."""
    try:
        return f"{entry['spec']['network']}, {fed(entry['spec'])}{computed(entry)}"
    except (KeyError, TypeError):
        return "for how it was made see --json"


def ledger(stream: str, failure: Any) -> dict[str, Any]:
    """A failure as an entry of ``features failures --json``; a clip that is kept in part has the same keys."""
    return {"stream": stream, **vars(failure), "missing": None, "kept": False}


def cut_off(name: str, stream: Any) -> list[dict[str, Any]]:
    """The clips of a stream that are kept as far as their video is undamaged, as entries of the ledger."""
    return [
        {
            "stream": name,
            "clip_id": clip_id,
            "video": clip.get("video", ""),
            "stage": "kept",
            "reason": clip["damage"],
            "attempts": None,  # is not recorded of what succeeded
            "source": stream.source(clip_id).entry,
            "missing": clip["missing"],
            "kept": True,
        }
        for clip_id, clip in stream.cut_off().items()
    ]


def fed(spec: dict[str, Any]) -> str:
    """What a stream's encoder looked at, in words."""
    if "source" in spec:
        return f"array {spec['source']['array']} of sha256 {spec['source']['sha256'][:12]}"
    if "sampling" not in spec:
        return f"up to {spec['max_tokens']} tokens"
    sampling = spec["sampling"]
    rate = "native rate" if sampling["fps"] is None else f"{sampling['fps']:g} fps"
    rate = f"{sampling['count']} samples a clip" if sampling.get("count") else rate
    if sampling["frames"] == sampling["stride"] == 1:
        return f"frames, {rate}"
    return f"{sampling['frames']} frames every {sampling['stride']}, {rate}"


def computed(entry: dict[str, Any]) -> str:
    """How a stream was computed, in words; of imported ones that is not known."""
    if "compute" not in entry["spec"]:
        return f", from {entry['provenance']['imported_from']}"
    return f", {entry['spec']['compute']['precision']}, weights {entry['provenance']['weights']}"


@click.command("ls")
@store_argument
@click.argument("stream", required=False)
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(min=0),
    help="Clips a stream to list; 0 for all, without their times.",
)
@click.option(
    "--state",
    type=click.Choice(["done", "empty", "failed", "absent"]),
    help="List clips in this state.  [default: done and empty]",
)
@click.option("--manifest", "manifest_path", type=FILE, help="List its clips alone; of text its captions.")
@json_option
@skip_damaged_option
def features_ls(
    store: Path,
    stream: str | None,
    limit: int,
    state: str | None,
    manifest_path: Path | None,
    as_json: bool,
    skip_damaged: bool,
) -> None:
    """Clips of a stream, or of every stream, with rows and times.

    Failed clips have the stage and the reason. With --json each clip has clip_id, state, rows, span (seconds of the
    first and the last row; null where there are none, or with --limit 0), stage, reason and attempts.
    """
    from ...features import open_store
    from ...manifests import read_manifest

    if state == "absent" and manifest_path is None:
        raise click.UsageError("--state absent needs --manifest: a store does not know which clips it lacks")
    clips = read_manifest(manifest_path) if manifest_path else None
    opened = open_store(store, skip_damaged=skip_damaged)
    record = {}
    for name in [stream] if stream else list(opened):
        contents = opened[name]
        warn_skipped(contents)
        matches = list(listed(contents, clips, state))
        shown = described_clips(contents, matches[: limit or None], spans=bool(limit))
        record[name] = {"clips": len(matches), "listed": shown}
        if as_json:
            continue
        click.echo(f"{name}: {plural(len(matches), f'{state} clip' if state else 'clip')}")
        names = [printable(entry["clip_id"]) for entry in shown]
        width = min(WIDEST_ID, max(map(len, names), default=0))
        for clip_id, entry in zip(names, shown, strict=True):
            click.echo(f"  {clip_id:{width}}  {clip_text(contents.spec['output'], entry)}")
        if len(shown) < len(matches):
            click.echo(f"  ... {len(matches) - len(shown):,} more; --limit 0 lists all")
    if as_json:
        click.echo(json.dumps(record, indent=1))


def listed(stream: Any, clips: list[Any] | None, state: str | None) -> Iterator[str]:
    """The ids of a stream, or those of a manifest, that are in a state; without one those that have rows."""
    wanted = {state} if state else {"done", "empty"}
    if clips is None and state in (None, "failed"):
        return iter(stream.failures if state else stream)
    ids = stream if clips is None else ids_of(clips, stream)
    return (clip_id for clip_id in ids if stream.state(clip_id) in wanted)


def described_clips(stream: Any, clip_ids: list[str], *, spans: bool) -> list[dict[str, Any]]:
    """Clips as ``features ls --json`` has them. Rows are read for ``spans`` alone."""
    entries = []
    with_rows = [clip_id for clip_id in clip_ids if clip_id in stream]
    read = dict(zip(with_rows, stream.read(with_rows), strict=True)) if spans and with_rows else {}
    for clip_id in clip_ids:
        entry = {"clip_id": clip_id, "state": stream.state(clip_id), "rows": 0, "span": None}
        failure = stream.failures[clip_id] if entry["state"] == "failed" else None
        if clip_id in stream:
            entry["rows"] = stream.rows_of(clip_id)
        if (rows := read.get(clip_id)) is not None and len(rows) and "times" in rows.arrays:
            entry["span"] = [float(rows.times[0, 0]), float(rows.times[-1, 1])]
        about = ("stage", "reason", "attempts")
        entries.append({**entry, **{key: getattr(failure, key) if failure else None for key in about}})
    return entries


def clip_text(output: dict[str, Any], entry: dict[str, Any]) -> str:
    """A clip of ``features ls`` in words."""
    if entry["state"] == "failed":
        return f"failed: {entry['stage']}: {printable(entry['reason'])} ({plural(entry['attempts'], 'try')})"
    if entry["state"] != "done":
        return entry["state"]
    span = f" over [{entry['span'][0]:.3f}, {entry['span'][1]:.3f}) s" if entry["span"] else ""
    return f"{plural(entry['rows'], 'row')} of {output['dtype']}{output['shape']}{span}"


@click.command("show")
@store_argument
@click.argument("clip")
@click.option(
    "--videos",
    type=click.Path(path_type=Path),
    help="The folder of the videos.  [default: the one that the store was made from]",
)
@click.option("--out", type=click.Path(path_type=Path), help="The PNG to write.  [default: CLIP.png, here]")
@click.option("--stream", help="Whose frames and boxes to show.  [default: one of objects, if there is one]")
@click.option("--frames", default=12, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@click.option("--boxes", default=10, show_default=True, type=click.IntRange(min=0), help="At most so many a frame.")
@json_option
def features_show(
    store: Path,
    clip: str,
    videos: Path | None,
    out: Path | None,
    stream: str | None,
    frames: int,
    boxes: int,
    as_json: bool,
) -> None:
    """Draw CLIP: frames with boxes and scores, and windows.

    The windows of all streams are on a time axis.
    """
    from ...extract.sheet import contact_sheet
    from ...features import open_store

    opened = open_store(store)
    if (videos := videos_of(store, videos)) is None:
        raise click.UsageError("give --videos: the folder that the store was made from is not known, or gone")
    out = out or Path(clip.replace("/", "_")).with_suffix(".png")
    shown = contact_sheet(opened, clip, videos, out, stream=stream, frames=frames, boxes=boxes)
    if as_json:
        click.echo(json.dumps({"clip_id": clip, "picture": str(out), "frames": shown}, indent=1))
    else:
        click.echo(f"{printable(str(out))}: {plural(shown, 'frame')}")


@click.command("failures")
@store_argument
@json_option
@skip_damaged_option
def features_failures(store: Path, as_json: bool, skip_damaged: bool) -> None:
    """Which clips failed: stage, reason, and how many tries.

    Clips that `--damaged keep` cut off at damage are listed too, at the stage `kept`, with the seconds that are
    missing. With --json they have `kept` true and no `attempts`; `missing` is null where that is unknown, and of
    clips that failed.
    """
    from rich.table import Table

    from ...features import open_store

    opened = open_store(store, skip_damaged=skip_damaged)
    entries = [ledger("", failure) for failure in opened.problems]
    for name, stream in opened.items():
        warn_skipped(stream)
        entries += [ledger(name, failure) for failure in stream.failures.values()]
        entries += cut_off(name, stream)
    if as_json:
        click.echo(json.dumps(entries, indent=1))
        return
    if not entries:
        click.echo("nothing failed")
        return
    table = Table("stream", "clip", "video", "stage", "reason", "tries", "missing", box=None)
    for entry in entries:
        columns = ("stream", "clip_id", "video", "stage", "reason", "attempts")
        seconds = "unknown" if entry["missing"] is None else f"{entry['missing']:.3f} s"
        cells = ["" if entry[column] is None else printable(str(entry[column])) for column in columns]
        table.add_row(*cells, seconds if entry["kept"] else "all")
    console().print(table)
    kept = sum(entry["kept"] for entry in entries)
    if kept:
        click.echo(f"{plural(kept, 'clip')} {'lacks' if kept == 1 else 'lack'} what damage has cut off")
    if failed := len(entries) - kept:
        again = "it" if failed == 1 else "them"
        click.echo(f"{plural(failed, 'failure')}; try {again} again with amex extract ... --retry-failed")
        if any(entry["stage"] == "decode" for entry in entries):
            click.echo("with --damaged keep beside it, what comes before damage is kept")
