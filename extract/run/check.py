"""Are the videos of a manifest there, readable, and long enough for their clips? From headers alone.

A feeder reads them: a file on which it hangs or dies is one bad file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...manifests import Clip, Problem, VideoError, VideoFinder
from ..limits import DEADLINE
from ..video import Feeders, Unreadable

# Seconds by which a clip may end after its video: annotations are rounded, headers too.
SLACK = 1.0


@dataclass
class Check:
    """What is wrong, by kind: the video or clip -> the reason.

    Attributes:
        videos: how many the clips name.
        seconds: of the videos that can be read, as their headers say.
        other_extension: videos that were found under another extension -> the path, which is not wrong.
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
        return len(self.missing) + len(self.unreadable) + len(self.too_short) + len(self.manifest)


def check_videos(
    items: Sequence[Clip | Problem],
    root: Path,
    *,
    deadline: float = DEADLINE,
    progress: Callable[[], None] = lambda: None,
) -> Check:
    """Looks at every video once.

    Args:
        progress: called after each video.
        deadline: seconds after which the feeder is taken for hung.
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
