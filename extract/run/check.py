"""Check from headers alone that the videos of a manifest exist, can be opened, and are as long as their clips.

A feeder process reads the headers, so a file that hangs or crashes the decoder only fails itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...manifests import Clip, Problem, VideoError, VideoFinder
from ..limits import DEADLINE
from ..video import Feeders, Unreadable

# Seconds that a clip may end after its video, because annotations and headers are rounded.
SLACK = 1.0


@dataclass
class Check:
    """The result of a check.

    Attributes:
        videos: number of videos in the manifest.
        seconds: total length of the readable videos, from their headers.
        other_extension: video -> path, for videos with an extension other than the manifest's. Not an error.
        missing: video -> reason.
        unreadable: video -> reason.
        too_short: clip_id -> reason, for clips that end after their video.
        manifest: line -> reason, for invalid manifest lines.
    """

    videos: int = 0
    seconds: float = 0.0
    other_extension: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    too_short: dict[str, str] = field(default_factory=dict)
    manifest: dict[str, str] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """The number of errors."""
        return len(self.missing) + len(self.unreadable) + len(self.too_short) + len(self.manifest)


def check_videos(
    items: Sequence[Clip | Problem],
    root: Path,
    *,
    deadline: float = DEADLINE,
    progress: Callable[[], None] = lambda: None,
) -> Check:
    """Check every video once.

    Args:
        root: folder of the videos.
        deadline: seconds after which a silent feeder is killed.
        progress: called after each video.
    """
    finder = VideoFinder(root)
    check = Check(manifest={p.place: p.reason for p in items if isinstance(p, Problem)})
    by_video: dict[str, list[Clip]] = {}
    for item in items:
        if isinstance(item, Clip):
            by_video.setdefault(item.video, []).append(item)
    check.videos = len(by_video)
    with contextlib.closing(Feeders(deadline=deadline)) as feeders:
        for video, clips in by_video.items():
            try:
                end = feeders.header(root / finder.find(video)).end
            except VideoError as error:
                check.missing[video] = str(error)
            except Unreadable as error:
                check.unreadable[video] = str(error)
            else:
                check.seconds += end or 0.0
                for clip in clips:
                    needed = max(clip.start or 0.0, clip.end or 0.0)
                    if end is not None and needed > end + SLACK:
                        check.too_short[clip.clip_id] = f"needs {needed:.1f} s of {video}, which has {end:.1f} s"
            progress()
    check.other_extension = {video: str(path) for video, path in finder.other_extension.items()}
    return check
