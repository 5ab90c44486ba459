"""Features from elsewhere, and for other programs."""

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
from ..options import FILE, POSITIVE, STORAGE_PATH, json_option
from .options import ids_of, skip_damaged_option, store_argument, warn_skipped

# Each has a function ``features.export_*``.
EXPORTED = ("npy", "hdf5", "parquet", "webdataset", "safetensors", "hgr")
ENDINGS = {".h5": "hdf5", ".hdf5": "hdf5", ".parquet": "parquet", ".safetensors": "safetensors"}


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--store", required=True, type=STORAGE_PATH, help="The store to write or to go on with.")
@click.option(
    "--format",
    "form",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "npy", "hdf5", "hgr", "butd", "safetensors"]),
    help="npy: .npy, .npz or an exported folder. hdf5: one dataset a clip. hgr: HGR's folders. butd: bottom-up "
    "attention's TSV. safetensors: what export wrote.",
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
    """Bring features from elsewhere into a store, value for value.

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
            written, known = import_stream(
                entry, store, stream, origin=source, allow_nan=allow_nan, progress=functools.partial(bar.advance, task)
            )
            record[stream] = {"imported": written, "known": known}
            if as_json:
                continue
            were = f", {known:,} {'was' if known == 1 else 'were'} there" if known else ""
            click.echo(f"{store}: stream {stream}, {plural(written, 'clip')} imported{were}")
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
    "webdataset for training elsewhere; these need pip install 'amex[export]'. hgr is what HGR's programs read.  "
    "[default: by the ending of --out, else npy]",
)
@click.option(
    "--pool",
    type=click.Choice(["mean"]),
    help="One float32 vector a clip, the mean of its rows; of objects, of the boxes that are there. Of a caption its "
    "own vector, if the stream has one.",
)
@click.option(
    "--manifest",
    "manifest_path",
    type=FILE,
    help="Export the clips of this manifest alone, or their captions, in its order. hgr needs it, for splits and "
    "captions.",
)
@click.option(
    "--shard-mb",
    type=POSITIVE,
    default=256,
    show_default=True,
    help="About how large a file is, of parquet, webdataset and safetensors.",
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
    """Write a stream as files that other programs read.

    \b
    amex features export s.zarr r2plus1d_18 --out vectors.parquet --format parquet --pool mean
    amex features export s.zarr r2plus1d_18 --out shards --format webdataset --manifest train.jsonl
    """
    from ... import features
    from ...manifests import read_manifest

    form = form or ENDINGS.get(out.suffix, "npy")
    if form == "hgr" and manifest_path is None:
        raise click.UsageError("--format hgr needs --manifest, for splits and captions")
    if form == "hgr" and pool:
        raise click.UsageError("--format hgr has means beside the rows: leave out --pool")
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
    """The clips of a manifest that HGR's folders have a place for; says on standard error how many have none."""
    kept = [clip for clip in clips if clip.split in ("train", "val", "test")]
    if not kept:
        raise AmexError(f"no clip of {path} is in the split train, val or test, and HGR's folders have no others")
    if left := len(clips) - len(kept):
        click.echo(f"{path}: {plural(left, 'clip')} in none of the splits train, val and test left out", err=True)
    return kept


def chosen(contents: Any, clips: Sequence[Any], path: Path) -> list[str]:
    """The clips of a manifest, or their captions, that a stream has; says on standard error how many it lacks."""
    wanted = ids_of(clips, contents)
    ids = [clip_id for clip_id in wanted if clip_id in contents]
    if not ids:
        raise AmexError(f"stream {contents.name} has none of {path}")
    if lacking := Counter(contents.state(clip_id) for clip_id in wanted if clip_id not in contents):
        counts = ", ".join(f"{count:,} {state}" for state, count in sorted(lacking.items()))
        click.echo(f"{path}: {contents.name} has no features of {lacking.total():,} ({counts})", err=True)
    return ids
