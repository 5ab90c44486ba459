"""Are the videos of a manifest there, readable, and long enough for their clips? From headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..manifests import Clip, Problem, VideoError, VideoFinder
from .decode import Unreadable, open_video

# Seconds by which a clip may end after its video: annotations are rounded, headers too.
SLACK = 1.0


@dataclass
class Check:
    """What is wrong, by kind: the video or clip -> the reason.

    Attributes:
        other_extension: videos that were found under another extension -> the path, which is not wrong.
    """

    videos: int = 0
    other_extension: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    too_short: dict[str, str] = field(default_factory=dict)
    manifest: dict[str, str] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        return len(self.missing) + len(self.unreadable) + len(self.too_short) + len(self.manifest)


def check_videos(items: Sequence[Clip | Problem], root: Path) -> Check:
    """Looks at every video once."""
    finder = VideoFinder(root)
    check = Check(manifest={p.place: p.reason for p in items if isinstance(p, Problem)})
    by_video: dict[str, list[Clip]] = {}
    for item in items:
        if isinstance(item, Clip):
            by_video.setdefault(item.video, []).append(item)
    check.videos = len(by_video)
    for video, clips in by_video.items():
        try:
            duration, _ = header(root / finder.find(video))
        except VideoError as error:
            check.missing[video] = str(error)
        except Unreadable as error:
            check.unreadable[video] = str(error)
        else:
            for clip in clips:
                needed = max(clip.start or 0.0, clip.end or 0.0)
                if needed > duration + SLACK:
                    check.too_short[clip.clip_id] = f"needs {needed:.1f} s of {video}, which has {duration:.1f} s"
    check.other_extension = {video: str(path) for video, path in finder.other_extension.items()}
    return check


def header(path: Path) -> tuple[float, float]:
    """Where a video ends, in seconds on its own clock, and its frames per second, as its header states them."""
    if not path.is_file():  # this process has no deadline: opening a pipe would wait for ever
        raise Unreadable("open", "not a regular file")
    container, stream = open_video(str(path))
    with container:
        rate = float(stream.average_rate or 25)
        if stream.duration:
            return float(((stream.start_time or 0) + stream.duration) * stream.time_base), rate
        return ((container.start_time or 0) + (container.duration or 0)) / 1e6, rate
