"""Features from elsewhere, and for other programs."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from ...console import console
from ...errors import AmexError, plural
from ..options import STORAGE_PATH
from .options import skip_damaged_option, store_argument, warn_skipped


@click.command("import")
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


@click.command("export")
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

    from ...features import export_hdf5, export_hgr, export_npy, open_store
    from ...manifests import read_manifest

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
