"""TACoS (Regneri et al., TACL 2013): sentences with one moment each in long cooking videos, as 2D-TAN splits them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...foreign import reading
from ..annotations import AnnotationFile, Annotations
from ..clip import Clip, ManifestError, Problem
from ..moments import Query, clips_of_queries
from ..published import read_json
from ..videos import video_id
from .base import Dataset, Protocol

REPOSITORY = (
    "https://raw.githubusercontent.com/microsoft/VideoX/1744b2159c3d11694f94dab4fcde8660c685e79a/2D-TAN/data/TACoS/"
)
DIGESTS = {
    "train": "ee5e1527885122f0d3cf1dbfcf0efb0de0c54f8290937fe3ff8b5844742112e9",
    "val": "f8f350e5727e8c0ab3ca2a5d4df93027dcd0546aebe8e2087ae220c850db59fe",
    "test": "1c64c8a5ada2b812ee7e230d1577139c5ee8e1e5d9ae2141479c980a0c3fb847",
}
FILES = {
    split: AnnotationFile(name=f"{split}.json", url=f"{REPOSITORY}{split}.json", sha256=sha256)
    for split, sha256 in DIGESTS.items()
}


def build(annotations: Annotations, protocol: str) -> Iterator[Clip | Problem]:
    """Yield a clip per video."""
    for split, file in FILES.items():
        yield from clips_of_queries(read_queries(annotations[file.name]), split)


def read_queries(path: Path) -> Iterator[Query]:
    """Yield the sentences of each video. First and last frames are converted to seconds."""
    for video, entry in read_json(path).items():
        with reading(path, ManifestError, f"has an invalid entry for video {video!r}"):
            fps, duration = float(entry["fps"]), entry["num_frames"] / entry["fps"]
            spans = list(zip(entry["timestamps"], entry["sentences"], strict=True))
            windows = [[frame / fps for frame in frames] for frames, _ in spans]
        for window, (_, sentence) in zip(windows, spans, strict=True):
            yield Query(video=video_id(video), text=sentence, windows=[window], file=path.name, duration=duration)


DATASET = Dataset(
    name="tacos",
    title="TACoS (Regneri et al., TACL 2013): moments of cooking videos, five minutes long on average",
    takes="the folder with train.json, val.json and test.json of 2D-TAN",
    build=build,
    protocols={
        "2d-tan": Protocol(
            help="2D-TAN's split (Zhang et al., AAAI 2020); a clip is a whole video, its captions are the queries",
            clips={"train": 75, "val": 27, "test": 25},
            captions={"train": 9_790, "val": 4_436, "test": 4_001},
            files=tuple(FILES.values()),
            known="counted",
        )
    },
    videos="The videos of MPII Cooking Composite Activities (Max Planck Institute for Informatics), named ID.avi.",
)
