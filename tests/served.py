"""A store with videos and boxes, a searcher that is quick, and the page of both behind a real server."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from videos import encode

from amex.cli.page import Library, VideoFiles, clip_streams, make_app, open_pictures
from amex.cli.serve import listen
from amex.errors import AmexError
from amex.features import ClipRows, ClipSource, Store, create_store, declare_stream, open_store, write_part
from amex.manifests import Clip
from amex.train.coverage import Coverage
from amex.train.search import Hit

WICKED = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>\'"`${window.hurt=1}'
CLIPS = (
    Clip(clip_id="dog", video="a.mp4", start=0.5, end=1.5, split="train", captions=("a dog chases a ball",)),
    Clip(clip_id="cat", video="b.webm", split="test", captions=("a cat sleeps", "a cat dreams of a dog")),
    Clip(clip_id="wok", video="deep/c.avi", start=0.2, split="test", captions=("someone fries in a wok",)),
    Clip(clip_id="broken", video="d.mp4", captions=("a broken dog",)),
    Clip(clip_id="gone/away &?#.mp4", video="e.mp4", captions=("no file",)),
    Clip(clip_id=WICKED, video="f.mp4", captions=(WICKED,)),
)
WINDOWS = {"network": "test", "output": {"shape": [4], "dtype": "float32"}}
OBJECTS = {
    "network": "test",
    "output": {
        "shape": [2, 4],
        "dtype": "float32",
        "labels": ["ball", WICKED],
        "arrays": {
            "boxes": {"shape": [2, 4], "dtype": "float32"},
            "scores": {"shape": [2], "dtype": "float32"},
            "labels": {"shape": [2], "dtype": "int32"},
            "counts": {"shape": [], "dtype": "int32"},
            "frame_size": {"shape": [2], "dtype": "int32"},
        },
    },
}


def make_store(folder: Path) -> Path:
    """Videos of 60 numbered frames, 30 a second, below ``videos``; two rows a clip; boxes of the dog, five a second."""
    videos, store = folder / "videos", folder / "s.zarr"
    (videos / "deep").mkdir(parents=True)
    encode(videos / "a.mp4", options={"preset": "ultrafast", "g": "15"})
    encode(videos / "b.webm", codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})
    encode(videos / "deep" / "c.avi", codec="mpeg4", options={"b": "4000000"})
    (videos / "d.mp4").write_bytes(b"no video at all")
    shutil.copy(videos / "a.mp4", videos / "f.mp4")
    create_store(store)
    times = np.array([[0.5, 1.0], [1.0, 1.5]])
    rows = {"values": np.zeros((2, 4), np.float32), "times": times}
    made = [ClipRows(clip_id=c.clip_id, arrays=rows, source=ClipSource(video=c.video)) for c in CLIPS]
    write(store, "motion", WINDOWS, made)
    begins = np.arange(0.5, 1.5, 0.2)
    count = len(begins)
    boxes = {
        "values": np.zeros((count, 2, 4), np.float32),
        "times": np.stack([begins, begins + 1 / 30], axis=1),
        "boxes": np.tile(np.array([[32, 24, 96, 72], [160, 120, 320, 240]], np.float32), (count, 1, 1)),
        "scores": np.tile(np.array([0.25, 0.75], np.float32), (count, 1)),
        "labels": np.tile(np.array([0, 1], np.int32), (count, 1)),
        "counts": np.full(count, 2, np.int32),
        "frame_size": np.tile(np.array([320, 240], np.int32), (count, 1)),
    }
    write(store, "objects", OBJECTS, [ClipRows(clip_id="dog", arrays=boxes, source=ClipSource(video="a.mp4"))])
    return store


def write(store: Path, stream: str, spec: dict[str, Any], clips: Sequence[ClipRows]) -> None:
    declare_stream(store, stream, spec, {})
    write_part(store, stream, "p", spec=spec, clips=clips, failures=[], run={})


class ByWords:
    """A searcher: a clip's score is the share of the query's words that its captions have."""

    description = "words in common <b>"

    def __init__(self, store: Store, clips: Sequence[Clip] = CLIPS) -> None:
        self.store, self.clips = store, clips
        self.coverage = Coverage(clips=len(clips), of_clips=len(clips), captions=0, of_captions=0)
        self.busy = threading.Lock()

    def clips_for(self, query: str, k: int) -> list[Hit]:
        assert self.busy.acquire(blocking=False), "two searches at once"
        try:
            if query == "fail":
                raise AmexError(f"no encoder for {WICKED}")
            if query == "crash":
                raise RuntimeError("out of <b>cheese</b>")
            scores = {clip: self._score(query, clip) for clip in self.clips}
            best = sorted(self.clips, key=lambda clip: -scores[clip])[:k]
            return [self._hit(rank, scores[clip], clip) for rank, clip in enumerate(best, start=1)]
        finally:
            self.busy.release()

    def captions_for(self, clip_id: str, k: int) -> list[Hit]:
        (clip,) = (clip for clip in self.clips if clip.clip_id == clip_id)
        texts = [(caption, other) for other in self.clips for caption in other.captions]
        texts.sort(key=lambda text: text[1] is not clip)
        return [self._hit(r, 1 / r, other, caption) for r, (caption, other) in enumerate(texts[:k], start=1)]

    @staticmethod
    def _score(query: str, clip: Clip) -> float:
        words = query.split()
        return sum(word in " ".join(clip.captions).split() for word in words) / len(words)

    @staticmethod
    def _hit(rank: int, score: float, clip: Clip, caption: str = "") -> Hit:
        text = caption or clip.captions[0]
        return Hit(rank=rank, score=score, clip=clip, caption=text, start=clip.start or 0.5, end=clip.end or 1.5)


@contextmanager
def serving(store: Path, videos: Path | None, clips: Sequence[Clip] = CLIPS) -> Iterator[str]:
    """The address of the page."""
    searcher = ByWords(open_store(store), clips)
    streams = clip_streams(searcher.store)
    files = None if videos is None else VideoFiles(videos, streams)
    listener = listen("127.0.0.1", 0)
    with open_pictures() as pictures:
        library = Library(searcher, streams, "" if files else "no pictures: a test")
        app = make_app(library, files, pictures, ["localhost"])
        server = uvicorn.Server(
            uvicorn.Config(app, lifespan="off", ws="none", log_level="critical", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            listener.close()
