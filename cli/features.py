"""``amex features``: look at a store."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from ..console import console
from ..errors import AmexError, plural, printable
from .options import STORAGE_PATH, json_option

store_argument = click.argument("store", type=STORAGE_PATH)
skip_damaged_option = click.option(
    "--skip-damaged", is_flag=True, help="Read on without the parts whose commit records are damaged."
)


def warn_skipped(stream: Any) -> None:
    """Says on standard error which parts of a stream are left out."""
    for part in stream.damaged:
        click.echo(f"{stream.name}: damaged part {part} is left out, its clips are absent", err=True)


@click.group()
def features() -> None:
    """Look at a store: what is in it, whether it is intact, what failed. Bring features in, take them out."""


@features.command("info")
@store_argument
@json_option
def features_info(store: Path, as_json: bool) -> None:
    """Streams with their clips, rows, bytes and settings. Exits with 1 if a commit record is damaged."""
    from ..features import open_store

    opened = open_store(store, skip_damaged=True)
    record = {}
    for name, stream in opened.items():
        sizes = [sum(file["bytes"] for file in commit["files"].values()) for commit in stream.commits.values()]
        record[name] = {
            "clips": len(stream),
            "failed": len(stream.failures),
            "cut_off_by_damage": len(stream.cut_off()),
            "rows": stream.rows,
            "parts": len(stream.commits),
            "damaged_parts": len(stream.damaged),
            "bytes": sum(sizes),
            "decoders": dict(
                Counter(c["decoder"] for commit in stream.commits.values() for c in commit["clips"] if "decoder" in c)
            ),
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


@features.command("ls")
@store_argument
@click.argument("stream", required=False)
@click.option("--limit", default=20, show_default=True, help="Clips a stream to list; 0 for all.")
@skip_damaged_option
def features_ls(store: Path, stream: str | None, limit: int, skip_damaged: bool) -> None:
    """Clips of a stream, or of every stream, with their rows and times."""
    from ..features import open_store

    opened = open_store(store, skip_damaged=skip_damaged)
    for name in [stream] if stream else list(opened):
        contents = opened[name]
        warn_skipped(contents)
        click.echo(f"{name}: {plural(len(contents), 'clip')}")
        for clip_id in itertools.islice(contents, limit or None):
            click.echo(f"  {printable(clip_id)}  {contents[clip_id]!r}")
        if limit and len(contents) > limit:
            click.echo(f"  ... {len(contents) - limit:,} more; --limit 0 lists all")


@features.command("show")
@store_argument
@click.argument("clip")
@click.option(
    "--videos", required=True, type=click.Path(path_type=Path), help="The folder the videos were extracted from."
)
@click.option("--out", type=click.Path(path_type=Path), help="The PNG to write.  [default: CLIP.png, here]")
@click.option("--stream", help="Whose frames and boxes to show.  [default: one of objects, if there is one]")
@click.option("--frames", default=12, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@click.option("--boxes", default=10, show_default=True, type=click.IntRange(min=0), help="At most so many a frame.")
def features_show(
    store: Path, clip: str, videos: Path, out: Path | None, stream: str | None, frames: int, boxes: int
) -> None:
    """Draw a contact sheet of CLIP: its frames with boxes, labels and scores, and all windows on a time axis."""
    from ..extract.sheet import contact_sheet
    from ..features import open_store

    out = out or Path(clip.replace("/", "_")).with_suffix(".png")
    shown = contact_sheet(open_store(store), clip, videos, out, stream=stream, frames=frames, boxes=boxes)
    click.echo(f"{printable(str(out))}: {plural(shown, 'frame')}")


@features.command("verify")
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

    from ..features import mend, verify_store
    from ..features.verify import without_seal
    from ..storage import reachable, storage_at

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


@features.command("rm")
@store_argument
@click.argument("stream")
@click.option("--yes", is_flag=True, help="Do not ask.")
def features_rm(store: Path, stream: str, yes: bool) -> None:
    """Remove STREAM, all its features, from a store. Not while a run writes to it or a training reads it."""
    from ..features import StoreError, open_store, remove_stream
    from ..storage import reachable

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


@features.command("failures")
@store_argument
@json_option
@skip_damaged_option
def features_failures(store: Path, as_json: bool, skip_damaged: bool) -> None:
    """The quarantine ledger: which clips have no rows, at which stage they failed, why, how often they were tried.

    Clips that `--damaged keep` cut off at damage are listed too, at the stage `kept`, with the seconds that are
    missing. With --json they have `kept` true and no `attempts`; `missing` is null where that is unknown, and of
    clips that failed.
    """
    from rich.table import Table

    from ..features import open_store

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


@features.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--store", required=True, type=STORAGE_PATH, help="The store to write or to go on with.")
@click.option(
    "--format",
    "form",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "npy", "hdf5", "hgr", "butd"]),
    help="npy: .npy, .npz or an exported folder. hdf5: one dataset a clip. hgr: HGR's folders. butd: bottom-up "
    "attention's TSV.",
)
@click.option("--stream", "name", help="What to call it.  [default: the array's, file's or folder's name]")
@click.option("--array", "arrays", multiple=True, help="Of several arrays in SOURCE, one to take; repeat for more.")
@click.option(
    "--captions",
    type=click.Path(path_type=Path),
    help="JSON lines with video (or clip_id), and captions and split if known: names the rows of NumPy files, in order "
    "or those rows alone that their field row names. Of other files, picks the clips to take.",
)
@click.option(
    "--manifest", "manifest_path", type=click.Path(path_type=Path), help="Write a manifest of the clips here."
)
@click.option("--allow-nan", is_flag=True, help="Take features that are NaN or infinite. Times never are.")
@click.option(
    "--max-gb",
    type=click.FloatRange(min=0, min_open=True),
    help="Refuse SOURCE if it holds more than this once it is unpacked.  [default: 10 times its size, at least 1 GB]",
)
def features_import(
    source: Path,
    store: Path,
    form: str,
    name: str | None,
    arrays: tuple[str, ...],
    captions: Path | None,
    manifest_path: Path | None,
    allow_nan: bool,
    max_gb: float | None,
) -> None:
    """Bring features from elsewhere into a store, value for value.

    \b
    amex features import features.npz --captions captions.jsonl --store s.zarr --manifest m.jsonl
    amex features import clips.hdf5 --stream resnet152 --store s.zarr
    amex features import hgr_root --store s.zarr --manifest m.jsonl
    amex features import train2014_obj36.tsv --stream objects --store s.zarr
    """
    from rich.progress import Progress

    from ..features import find_sources, import_stream
    from ..foreign import reading
    from ..manifests import Clip, ManifestError, read_captions, write_manifest

    described = read_captions(captions) if captions else None
    names = (described.rows or [clip.clip_id for clip in described.clips]) if described else None
    sources = find_sources(source, form, names, arrays, max_gb)
    if name and len(sources) > 1:
        raise AmexError(f"{source} holds {', '.join(s.name for s in sources)}: with --stream, choose one by --array")
    clips = described.clips if described else []
    if manifest_path and not described:  # before hours of importing
        splits, texts = sources[0].splits, sources[0].captions  # all streams of a folder have the same
        with reading(source, ManifestError, "names clips that no manifest can hold"):
            clips = [
                Clip(
                    clip_id=clip_id,
                    video=clip_id,
                    split=splits.get(clip_id, ""),
                    captions=tuple(texts.get(clip_id, ())),
                )
                for clip_id in dict.fromkeys(clip_id for entry in sources for clip_id in entry.ids)
            ]
    with Progress(console=console(stderr=True), transient=True) as bar:
        for entry in sources:
            stream = name or entry.name
            task = bar.add_task(stream, total=len(entry.ids))
            written, known = import_stream(
                entry, store, stream, origin=source, allow_nan=allow_nan, progress=functools.partial(bar.advance, task)
            )
            were = f", {known:,} {'was' if known == 1 else 'were'} there" if known else ""
            click.echo(f"{store}: stream {stream}, {plural(written, 'clip')} imported{were}")
    if manifest_path:
        click.echo(f"{manifest_path}: {plural(write_manifest(clips, manifest_path), 'clip')}")


@features.command("export")
@store_argument
@click.argument("stream")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write; for hdf5 the file.")
@click.option(
    "--format",
    "form",
    default="npy",
    show_default=True,
    type=click.Choice(["npy", "hdf5", "hgr"]),
    help="npy and hdf5 hold all there is, and can be imported again; hgr is what HGR's programs read.",
)
@click.option("--manifest", "manifest_path", type=click.Path(path_type=Path), help="For hgr: splits and captions.")
@skip_damaged_option
def features_export(
    store: Path, stream: str, out: Path, form: str, manifest_path: Path | None, skip_damaged: bool
) -> None:
    """Write a stream as files that other programs read."""
    from rich.progress import Progress

    from ..features import export_hdf5, export_hgr, export_npy, open_store
    from ..manifests import read_manifest

    contents = open_store(store, skip_damaged=skip_damaged)[stream]
    warn_skipped(contents)
    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(stream, total=len(contents))
        tick = functools.partial(bar.advance, task)
        if form == "hgr":
            if manifest_path is None:
                raise click.UsageError("--format hgr needs --manifest, for splits and captions")
            clips = read_manifest(manifest_path)
            splits = {clip.clip_id: clip.split for clip in clips}
            export_hgr(contents, out, splits, {clip.clip_id: clip.captions for clip in clips}, tick)
        else:
            {"npy": export_npy, "hdf5": export_hdf5}[form](contents, out, tick)
    click.echo(f"{out}: {plural(len(contents), 'clip')} of {stream} as {form}")
