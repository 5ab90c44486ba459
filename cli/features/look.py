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
from ..options import json_option
from ..parameters import FOLDER, MANIFEST
from ..places import videos_of
from .options import ids_of, skip_damaged_option, store_argument, warn_skipped

MAX_ID_WIDTH = 60  # of the column; captions are longer


@click.command("info")
@store_argument
@json_option
def features_info(store: Path, as_json: bool) -> None:
    """Show streams: clips, rows, bytes and settings.

    Exits with 1 if a commit record is damaged.

    \b
    amex features info my.zarr
    """
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
    """Print the record of ``features info``, stream by stream."""
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
    """Describe how a stream was made; the spec of another program may not say it."""
    try:
        return f"{entry['spec']['network']}, {fed(entry['spec'])}{computed(entry)}"
    except (KeyError, TypeError):
        return "for how it was made see --json"


def ledger(stream: str, failure: Any) -> dict[str, Any]:
    """Return a failure as an entry of ``features failures --json``; cut-off clips have the same keys."""
    return {"stream": stream, **vars(failure), "missing": None, "kept": False}


def cut_off(name: str, stream: Any) -> list[dict[str, Any]]:
    """Return the clips that were cut off at damage, as entries of ``features failures --json``."""
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
    """Describe the input of a stream's encoder."""
    if "source" in spec:
        return f"array {spec['source']['array']} of sha256 {spec['source']['sha256'][:12]}"
    if "sampling" not in spec:
        return f"up to {plural(spec['max_tokens'], 'token')}"
    sampling = spec["sampling"]
    rate = "native rate" if sampling["fps"] is None else f"{sampling['fps']:g} fps"
    rate = f"{plural(sampling['count'], 'sample')} a clip" if sampling.get("count") else rate
    if sampling["frames"] == sampling["stride"] == 1:
        return f"frames, {rate}"
    return f"{plural(sampling['frames'], 'frame')} every {sampling['stride']}, {rate}"


def computed(entry: dict[str, Any]) -> str:
    """Describe the precision and the weights of a stream, or the file that it was imported from."""
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
    help="Maximum number of clips per stream; 0 lists all, without times.",
)
@click.option(
    "--state",
    type=click.Choice(["done", "empty", "failed", "absent"]),
    help="List clips in this state.  [default: done and empty]",
)
@click.option(
    "--manifest", "manifest_path", type=MANIFEST, help="List only its clips; of text streams only its captions."
)
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
    """List the clips of one stream or of all, with their rows.

    For a failed clip, the stage and the reason are listed. With --json each clip has clip_id, state, rows, span
    (seconds of the first and the last row; null without rows, or with --limit 0), stage, reason and attempts.

    \b
    amex features ls my.zarr
    amex features ls my.zarr r2plus1d_18 --state failed
    """
    if state == "absent" and manifest_path is None:
        raise click.UsageError("--state absent needs --manifest: a store does not know which clips it lacks")
    from ...features import is_caption_stream, open_store
    from ...manifests import read_manifest

    clips = read_manifest(manifest_path) if manifest_path else None
    opened = open_store(store, skip_damaged=skip_damaged)
    record = {}
    for name in [stream] if stream else list(opened):
        contents = opened[name]
        warn_skipped(contents)
        matches = list(listed(contents, clips, state))
        entries = described_clips(contents, matches[: limit or None], spans=bool(limit))
        record[name] = {"clips": len(matches), "listed": entries}
        if as_json:
            continue
        noun = "caption" if is_caption_stream(contents.spec) else "clip"
        click.echo(f"{name}: {plural(len(matches), f'{state} {noun}' if state else noun)}")
        names = [printable(entry["clip_id"]) for entry in entries]
        width = min(MAX_ID_WIDTH, max(map(len, names), default=0))
        for clip_id, entry in zip(names, entries, strict=True):
            click.echo(f"  {clip_id:{width}}  {clip_text(contents.spec['output'], entry)}")
        if len(entries) < len(matches):
            click.echo(f"  ... {len(matches) - len(entries):,} more; --limit 0 lists all")
    if as_json:
        click.echo(json.dumps(record, indent=1))


def listed(stream: Any, clips: list[Any] | None, state: str | None) -> Iterator[str]:
    """Yield the ids of a stream or of a manifest in a state; without a state, those with rows or empty."""
    states = {state} if state else {"done", "empty"}
    if clips is None and state in (None, "failed"):
        return iter(stream.failures if state else stream)
    ids = stream if clips is None else ids_of(clips, stream)
    return (clip_id for clip_id in ids if stream.state(clip_id) in states)


def described_clips(stream: Any, clip_ids: list[str], *, spans: bool) -> list[dict[str, Any]]:
    """Return clips as entries of ``features ls --json``. Rows are read only for ``spans``."""
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
    """Describe an entry of ``features ls``."""
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
    type=FOLDER,
    help="The folder of the videos.  [default: the one that the store was made from]",
)
@click.option("--out", type=click.Path(path_type=Path), help="The PNG to write.  [default: CLIP.png]")
@click.option("--stream", help="The stream of frames and boxes to show.  [default: a stream of objects, else any]")
@click.option("--frames", default=12, show_default=True, type=click.IntRange(min=1), help="Maximum number of frames.")
@click.option(
    "--boxes", default=10, show_default=True, type=click.IntRange(min=0), help="Maximum number of boxes per frame."
)
@click.option(
    "--score", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="Leave out boxes with a lower score."
)
@json_option
def features_show(
    store: Path,
    clip: str,
    videos: Path | None,
    out: Path | None,
    stream: str | None,
    frames: int,
    boxes: int,
    score: float,
    as_json: bool,
) -> None:
    """Draw CLIP as a picture: frames, boxes, and windows in time.

    The windows of all streams are drawn on a time axis below the frames.

    \b
    amex features show my.zarr clip.mp4 --out clip.png --score 0.5
    """
    from ...features import open_store

    opened = open_store(store)
    if (videos := videos_of(store, videos)) is None:
        raise click.UsageError("give --videos: the folder that the store was made from is not known, or gone")
    from ...extract.sheet import contact_sheet

    out = out or Path(clip.replace("/", "_")).with_suffix(".png")
    frame_count = contact_sheet(opened, clip, videos, out, stream=stream, frames=frames, boxes=boxes, score=score)
    if as_json:
        click.echo(json.dumps({"clip_id": clip, "picture": str(out), "frames": frame_count}, indent=1))
    else:
        click.echo(f"{printable(str(out))}: {plural(frame_count, 'frame')}")


@click.command("failures")
@store_argument
@json_option
@skip_damaged_option
def features_failures(store: Path, as_json: bool, skip_damaged: bool) -> None:
    """List failed clips: stage, reason, and number of attempts.

    Clips that `--damaged keep` cut off at damage are listed too, at stage `kept`, with the missing seconds. With --json
    their `kept` is true and their `attempts` is null; `missing` is null if it is unknown, and for failed clips.

    \b
    amex features failures my.zarr
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
    kept_count = sum(entry["kept"] for entry in entries)
    if kept_count:
        click.echo(f"{plural(kept_count, 'clip')} cut off where the video is damaged")
    if failed_count := len(entries) - kept_count:
        again = "it" if failed_count == 1 else "them"
        click.echo(f"{plural(failed_count, 'failure')}; try {again} again with amex extract ... --retry-failed")
        if any(entry["stage"] == "decode" for entry in entries):
            click.echo("add --damaged keep to keep the windows before the damage")
