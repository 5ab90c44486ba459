"""The folder that pages of the documentation find when they run."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import av

from amex.manifests import read_manifest
from amex.shapes.renderer import make_shapes

VIDEOS = (
    *("a.mp4", "b.webm", "c.avi", "dog.mp4", "kitchen/wok.mp4", "kitchen/rice.mp4"),
    *(f"clips/{number:02}.mp4" for number in range(1, 7)),
)


def draw_videos(folder: Path) -> None:
    """Draw clips of Shapes, name them like videos of a user, and write their captions."""
    with tempfile.TemporaryDirectory() as drawn:
        clips = list(read_manifest(make_shapes(Path(drawn), clips=len(VIDEOS), size=128)))
        rows = []
        for name, clip in zip(VIDEOS, clips, strict=True):
            source, target = Path(drawn) / "videos" / clip.video, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix == ".mp4":
                shutil.move(source, target)
            else:
                transcode(source, target)
            rows += [(name, caption, clip.split) for caption in clip.captions]
    write_rows(folder / "captions.csv", [("video", "caption", "split"), *rows])


def transcode(source: Path, target: Path) -> None:
    """Encode a video again, with the codec of the target's extension."""
    codec, options = {".webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}), ".avi": ("mpeg4", {})}[
        target.suffix
    ]
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        picture = reader.streams.video[0]
        stream = writer.add_stream(codec, rate=picture.average_rate, options=options)
        stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
        for frame in reader.decode(picture):
            plain = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
            writer.mux(stream.encode(plain))
        writer.mux(stream.encode(None))


def known_sets(folder: Path, videos: Path) -> None:
    """Write small stand-ins for YouCook2 and MSR-VTT: a few videos, annotations in the published format."""
    captions: dict[str, list[str]] = {}
    with (videos / "captions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["video"], []).append(row["caption"])
    films = [name for name in captions if name.endswith(".mp4")]
    for name in ("youcook2", "msrvtt"):
        (folder / name / "annotations").mkdir(parents=True)
        (folder / name / "videos").mkdir()

    database, listed = {}, [("end", "start", "task", "text", "video_id")]
    for number, film in enumerate(films[:6]):
        subset, name = ("training", "validation")[number >= 4], f"film{number:07}"
        shutil.copy(videos / film, folder / "youcook2" / "videos" / f"{name}.mp4")
        steps = [(0, 1, captions[film][0]), (1, 2, captions[film][1])]
        annotations = [{"segment": [a, b], "id": i, "sentence": text} for i, (a, b, text) in enumerate(steps)]
        database[name] = {"subset": subset, "annotations": annotations}
        listed += [(b, a, 0, text, name) for a, b, text in steps if subset == "validation"]
    place = folder / "youcook2" / "annotations"
    (place / "youcookii_annotations_trainval.json").write_text(json.dumps({"database": database}))
    write_rows(place / "validation_youcook.csv", listed)

    names = [f"video{number}" for number in range(len(films))]
    for name, film in zip(names, films, strict=True):
        shutil.copy(videos / film, folder / "msrvtt" / "videos" / f"{name}.mp4")
    splits = {"train": names[:6], "val": names[6:8], "test": names[8:]}
    sentences = [
        {"video_id": name, "caption": caption}
        for name, film in zip(names, films, strict=True)
        for caption in captions[film]
    ]
    place = folder / "msrvtt" / "annotations"
    (place / "MSRVTT_data.json").write_text(json.dumps({"sentences": sentences}))
    for split, chosen in {**splits, "train.9k": names[:8]}.items():
        file = f"MSRVTT_{split}.csv" if "." in split else f"MSRVTT_{split}.full.csv"
        write_rows(place / file, [("video_id",), *((name,) for name in chosen)])
    test = [(name, captions[film][0]) for name, film in list(zip(names, films, strict=True))[8:]]
    for file in ("MSRVTT_JSFUSION_test.csv", "MSRVTT_mteb_test.csv"):
        write_rows(place / file, [("video_id", "sentence"), *test])


def write_rows(path: Path, rows: list[tuple]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def prepare(folder: Path, environment: Mapping[str, str]) -> None:
    """Make the folder that the docstring of ``test_docs`` describes."""
    draw_videos(folder / "my_videos")
    known_sets(folder / "data", folder / "my_videos")
    streams = "--stream clip_vit_b32 --stream r2plus1d_18 --stream objects=shapes_detector"
    script = f"""
        amex extract my_videos --store my.zarr {streams} --set objects.boxes=6 \\
            --stream text_bert --text-encoder minilm --workers 1
        amex train amenet --store my.zarr --set train.epochs=2
    """
    result = subprocess.run(["bash", "-ec", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    shutil.copytree(folder / "my.zarr", folder / "features.zarr")
    shutil.copy(folder / "my.jsonl", folder / "m.jsonl")
