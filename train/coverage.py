"""Which share of a split takes part in training or evaluation, and why the rest is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import plural
from ..manifests import DATASETS, Clip

# In a smaller gallery, random ranking exceeds 20 % R@10, and one query changes R@1 by more than 2 points.
FEW_CLIPS = 50
# The command that creates splits if a manifest has none, or larger ones.
MAKE_SPLITS = "amex manifest split MANIFEST --val .1 --test .1"


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many clips and captions of a split take part, and how many are left out.

    Attributes:
        clips: clips with features in every stream that the model reads.
        of_clips: clips in the manifest.
        captions: captions of these clips that have features. A caption counts once for each clip and repetition.
        of_captions: captions in the manifest.
        clips_left_out: number of clips by reason, such as ``failed in r2plus1d_18``.
        captions_left_out: number of captions by reason; it includes the captions of clips that are left out.
        gallery: the published protocol of the clips, such as ``msrvtt:1k-A``; empty if there is none or several.
        published: number of clips of that protocol in this split; None if unknown.
    """

    clips: int
    of_clips: int
    captions: int
    of_captions: int
    clips_left_out: Mapping[str, int] = field(default_factory=dict)
    captions_left_out: Mapping[str, int] = field(default_factory=dict)
    gallery: str = ""
    published: int | None = None

    @property
    def clip_line(self) -> str:
        """For example ``967 of 1,000 clips: 33 failed in r2plus1d_18``."""
        return f"{self.clips:,} of {plural(self.of_clips, 'clip')}{_reasons(self.clips_left_out)}"

    @property
    def caption_line(self) -> str:
        """For example ``19,340 of 20,000 captions: 660 of clips left out``."""
        return f"{self.captions:,} of {plural(self.of_captions, 'caption')}{_reasons(self.captions_left_out)}"


def published_gallery(clips: Sequence[Clip]) -> dict[str, Any]:
    """Return the fields ``gallery`` and ``published`` of ``Coverage`` for the clips of a split."""
    protocols = {str(clip.extras.get("protocol", "")) for clip in clips}
    splits = {clip.split for clip in clips}
    gallery = protocols.pop() if len(protocols) == 1 else ""
    name, _, protocol = gallery.partition(":")
    if name not in DATASETS or protocol not in DATASETS[name].protocols or splits != {"test"}:
        return {"gallery": gallery}
    return {"gallery": gallery, "published": DATASETS[name].protocols[protocol].clips.get("test")}


def _reasons(left_out: Mapping[str, int]) -> str:
    return f": {', '.join(f'{count:,} {reason}' for reason, count in left_out.items())}" if left_out else ""


def gallery_warning(clips: int) -> str:
    """Return a warning if a gallery is too small for meaningful figures; else an empty text."""
    if clips >= FEW_CLIPS:
        return ""
    return (
        f"a gallery of {_clips(clips)} is too small to evaluate a model: random ranking reaches R@10 "
        f"{100 * min(1, 10 / clips):.0f} (use {FEW_CLIPS} clips or more)"
    )


def selection_warning(clips: int) -> str:
    """Return a warning if there are too few clips to choose a checkpoint; else an empty text."""
    if clips != 1:
        return gallery_warning(clips)
    return (
        "a gallery of 1 clip, which every model ranks first, cannot choose a checkpoint: the last one is kept. For "
        f"more clips: {MAKE_SPLITS} --again, with a larger --val"
    )


def training_warning(clips: int) -> str:
    """Return a warning if there are too few training clips; else an empty text."""
    if clips >= FEW_CLIPS:
        return ""
    return (
        f"{_clips(clips)} with captions {'is' if clips == 1 else 'are'} too few to train on ({FEW_CLIPS} or more); "
        "`amex search STORE` needs no training"
    )


def _clips(count: int) -> str:
    return f"{count} clip{'' if count == 1 else 's'}"


def split_lines(splits: Mapping[str, Any]) -> list[str]:
    """Return printable lines about the clips of a run, from its data.json."""
    lines = []
    for name, entry in splits.items():
        coverage = Coverage(**entry["coverage"])
        lines.append(f"{name}: {coverage.clip_line}; {coverage.caption_line}")
        if entry["warning"]:
            lines.append(f"warning: {entry['warning']}")
    return lines


def gallery_lines(result: Mapping[str, Any]) -> list[str]:
    """Return printable lines about the gallery and queries of a result of ``evaluate_split``."""
    coverage = Coverage(**result["coverage"])
    warnings = [f"warning: {warning}" for warning in result["warnings"]]
    if coverage.published not in (None, coverage.of_clips):
        warnings.append(
            f"warning: {coverage.gallery} has {plural(coverage.published, 'test clip')}, this manifest has "
            f"{coverage.of_clips:,}: the figures are not comparable with published ones"
        )
    name = f"{coverage.gallery}, " if coverage.gallery else ""
    return [f"gallery {name}{coverage.clip_line}", f"queries {coverage.caption_line}", *warnings]
