"""``amex features import`` and ``export``: features of and for other programs."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ...console import progress_bar
from ...errors import AmexError, plural
from ..options import json_option
from ..parameters import MANIFEST, POSITIVE, SOURCE, STORAGE_PATH
from .options import ids_of, skip_damaged_option, store_argument, warn_skipped

# The formats of export; ``features.export_*`` writes each.
EXPORTED = ("npy", "hdf5", "parquet", "webdataset", "safetensors", "hgr")
ENDINGS = {".h5": "hdf5", ".hdf5": "hdf5", ".parquet": "parquet", ".safetensors": "safetensors"}


@click.command("import")
@click.argument("source", type=SOURCE)
@click.option("--store", required=True, type=STORAGE_PATH, help="The store to create, or to add to.")
@click.option(
    "--format",
    "form",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "npy", "hdf5", "hgr", "butd", "safetensors"]),
    help="npy: .npy, .npz or an exported folder. hdf5: one dataset per clip. hgr: HGR's folders. butd: the TSV of "
    "bottom-up attention. safetensors: an export of amex.",
)
@click.option("--stream", "name", help="The name of the stream.  [default: the name of the array, file or folder]")
@click.option("--array", "arrays", multiple=True, help="An array of SOURCE to import; repeat for more.  [default: all]")
@click.option(
    "--captions",
    type=SOURCE,
    help="JSON lines with video (or clip_id), and optionally captions, split and row. For NumPy files, the ids of the "
    "rows: in order, or of the rows in field row. For other files, the clips to import.",
)
@click.option(
    "--manifest", "manifest_path", type=click.Path(path_type=Path), help="Also write a manifest of the clips."
)
@click.option("--allow-nan", is_flag=True, help="Accept features that are NaN or infinite. Times must be finite.")
@click.option(
    "--max-gb",
    type=click.FloatRange(min=0, min_open=True),
    help="Refuse SOURCE if it is larger than this when unpacked.  [default: 10 times its size, at least 1 GB]",
)
@json_option
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
    as_json: bool,
) -> None:
    """Import features of other programs, value for value.

    \b
    amex features import features.npz --captions captions.jsonl --store s.zarr --manifest m.jsonl
    amex features import clips.hdf5 --stream resnet152 --store s.zarr
    amex features import hgr_root --store s.zarr --manifest m.jsonl
    amex features import train2014_obj36.tsv --stream objects --store s.zarr
    """
    from ...features import find_sources, import_stream
    from ...foreign import reading
    from ...manifests import Clip, ManifestError, read_captions, write_manifest

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
    record: dict[str, dict[str, int]] = {}
    with progress_bar() as bar:
        for entry in sources:
            stream = name or entry.name
            task = bar.add_task(stream, total=len(entry.ids))
            written, present = import_stream(
                entry, store, stream, origin=source, allow_nan=allow_nan, progress=functools.partial(bar.advance, task)
            )
            record[stream] = {"imported": written, "known": present}
            if as_json:
                continue
            existing = f", {present:,} existed already" if present else ""
            click.echo(f"{store}: stream {stream}, {plural(written, 'clip')} imported{existing}")
    listed = write_manifest(clips, manifest_path) if manifest_path else None
    if as_json:
        click.echo(json.dumps({"streams": record, "manifest_clips": listed}, indent=1))
    elif manifest_path:
        click.echo(f"{manifest_path}: {plural(listed, 'clip')}")


@click.command("export")
@store_argument
@click.argument("stream")
@click.option(
    "--out", required=True, type=STORAGE_PATH, help="The folder to write, or the file: .h5, .parquet, .safetensors."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(EXPORTED),
    help="npy, hdf5 and safetensors can be imported again. parquet is for vector databases and SQL, safetensors and "
    "webdataset for training elsewhere; these need pip install 'amex[export]'. hgr is the format of HGR's programs.  "
    "[default: by the ending of --out, else npy]",
)
@click.option(
    "--pool",
    type=click.Choice(["mean"]),
    help="Export one float32 vector per clip, the mean of its rows (of objects: of its boxes). A caption has its "
    "sentence vector, if the stream has one.",
)
@click.option(
    "--manifest",
    "manifest_path",
    type=MANIFEST,
    help="Export only the clips of this manifest, or their captions, in its order. hgr needs it for splits and "
    "captions.",
)
@click.option(
    "--shard-mb",
    type=POSITIVE,
    default=256,
    show_default=True,
    help="Approximate size of a file of parquet, webdataset and safetensors.",
)
@json_option
@skip_damaged_option
def features_export(
    store: Path,
    stream: str,
    out: Path,
    form: str | None,
    pool: str | None,
    manifest_path: Path | None,
    shard_mb: float,
    as_json: bool,
    skip_damaged: bool,
) -> None:
    """Write a stream as files for other programs.

    \b
    amex features export s.zarr r2plus1d_18 --out vectors.parquet --format parquet --pool mean
    amex features export s.zarr r2plus1d_18 --out shards --format webdataset --manifest train.jsonl
    """
    form = form or ENDINGS.get(out.suffix, "npy")
    if form == "hgr" and manifest_path is None:
        raise click.UsageError("--format hgr needs --manifest, for splits and captions")
    if form == "hgr" and pool:
        raise click.UsageError("--format hgr has means beside the rows: leave out --pool")
    from ... import features
    from ...manifests import read_manifest

    contents = features.open_store(store, skip_damaged=skip_damaged)[stream]
    warn_skipped(contents)
    clips = read_manifest(manifest_path) if manifest_path else []
    if form == "hgr":
        clips = of_known_splits(clips, manifest_path)
    ids = chosen(contents, clips, manifest_path) if manifest_path else None
    with progress_bar() as bar:
        task = bar.add_task(stream, total=len(contents) if ids is None else len(ids))
        tick = functools.partial(bar.advance, task)
        excerpt = features.Excerpt(contents, ids, pooled=bool(pool), progress=tick)
        write = getattr(features, f"export_{form}")
        if form == "hgr":
            splits = {clip.clip_id: clip.split for clip in clips}
            write(excerpt, out, splits, {clip.clip_id: clip.captions for clip in clips})
        elif form in ("npy", "hdf5"):
            write(excerpt, out)
        else:
            write(excerpt, out, shard_bytes=math.ceil(shard_mb * 1e6))
    noun = "caption" if excerpt.of_text else "clip"
    if as_json:
        counts = {"clips": excerpt.clips, "rows": excerpt.rows, "left_out": excerpt.left_out}
        click.echo(json.dumps({"out": str(out), "stream": stream, "format": form, "pool": pool, **counts}, indent=1))
        return
    left = f"; {plural(excerpt.left_out, f'empty {noun}')} left out" if excerpt.left_out else ""
    click.echo(f"{out}: {plural(excerpt.clips, noun)} of {stream} as {form}{left}")


def of_known_splits(clips: Sequence[Any], path: Path | None) -> list[Any]:
    """Return the clips in splits that HGR's folders can hold; print how many are left out."""
    matches = [clip for clip in clips if clip.split in ("train", "val", "test")]
    if not matches:
        raise AmexError(f"no clip of {path} is in the split train, val or test, and HGR's folders have no others")
    if left_out := len(clips) - len(matches):
        click.echo(f"{path}: {plural(left_out, 'clip')} in none of the splits train, val and test left out", err=True)
    return matches


def chosen(contents: Any, clips: Sequence[Any], path: Path) -> list[str]:
    """Return the ids of a manifest's clips or captions that a stream has; print how many it lacks."""
    ids_of_manifest = ids_of(clips, contents)
    ids = [clip_id for clip_id in ids_of_manifest if clip_id in contents]
    if not ids:
        raise AmexError(f"stream {contents.name} has none of {path}")
    if missing := Counter(contents.state(clip_id) for clip_id in ids_of_manifest if clip_id not in contents):
        counts = ", ".join(f"{count:,} {state}" for state, count in sorted(missing.items()))
        click.echo(f"{path}: {contents.name} has no features of {missing.total():,} ({counts})", err=True)
    return ids
