"""How much of a split a figure is of: the clips and captions that take part, what is left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..manifests import DATASETS, Clip

# In a smaller gallery chance reaches an R@10 of more than 20 %, and one query moves R@1 by more than 2 points.
FEW_CLIPS = 50
# What makes splits where a manifest has none, or too small ones.
MAKE_SPLITS = "amex manifest split MANIFEST --val .1 --test .1"


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """The clips and captions of a split that take part, and those of the manifest that do not.

    Attributes:
        clips: those with features in every stream that the model reads: the gallery, or what is trained on.
        of_clips: in the manifest.
        captions: of these clips, with features: the queries. A caption counts for each clip, and each time.
        of_captions: in the manifest.
        clips_left_out: a reason, as ``failed in r2plus1d_18``, to how many clips.
        captions_left_out: a reason to how many captions; those of clips that are left out are among them.
        gallery: the published protocol that the clips are of, as ``msrvtt:1k-A``; empty where there is none, or two.
        published: how many clips that has in this split; None where it is not known.
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
        """As ``967 of 1,000 clips: 33 failed in r2plus1d_18``."""
        return f"{self.clips:,} of {self.of_clips:,} clips{_reasons(self.clips_left_out)}"

    @property
    def caption_line(self) -> str:
        """As ``19,340 of 20,000 captions: 660 of clips left out``."""
        return f"{self.captions:,} of {self.of_captions:,} captions{_reasons(self.captions_left_out)}"


def published_gallery(clips: Sequence[Clip]) -> dict[str, Any]:
    """``gallery`` and ``published`` of the clips of a split, as ``Coverage`` has them."""
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
    """A line if a gallery is too small for its figures to mean anything; else empty."""
    if clips >= FEW_CLIPS:
        return ""
    return (
        f"a gallery of {_clips(clips)} is too small to say much about a model: chance reaches R@10 "
        f"{100 * min(1, 10 / clips):.0f} (figures need {FEW_CLIPS} clips or more)"
    )


def selection_warning(clips: int) -> str:
    """A line if clips are too few to choose a checkpoint on; else empty."""
    if clips != 1:
        return gallery_warning(clips)
    return (
        "a gallery of 1 clip, which every model ranks first, chooses no checkpoint: the last one is kept. Draw more: "
        f"{MAKE_SPLITS}, with a larger --val"
    )


def training_warning(clips: int) -> str:
    """A line if clips are too few to learn from; else empty."""
    if clips >= FEW_CLIPS:
        return ""
    return (
        f"{_clips(clips)} with captions {'is' if clips == 1 else 'are'} too few to train on ({FEW_CLIPS} or more); "
        "`amex search STORE` needs no training"
    )


def _clips(count: int) -> str:
    return f"{count} clip{'' if count == 1 else 's'}"


def split_lines(splits: Mapping[str, Any]) -> list[str]:
    """Lines for people about the clips of a run, from what its data.json holds."""
    lines = []
    for name, entry in splits.items():
        coverage = Coverage(**entry["coverage"])
        lines.append(f"{name}: {coverage.clip_line}; {coverage.caption_line}")
        if entry["warning"]:
            lines.append(f"warning: {entry['warning']}")
    return lines


def gallery_lines(result: Mapping[str, Any]) -> list[str]:
    """Lines for people about what the figures of ``evaluate_split`` are of."""
    coverage = Coverage(**result["coverage"])
    warnings = [f"warning: {warning}" for warning in result["warnings"]]
    if coverage.published not in (None, coverage.of_clips):
        warnings.append(
            f"warning: {coverage.gallery} has {coverage.published:,} test clips and this manifest "
            f"{coverage.of_clips:,}: no published figure compares with these"
        )
    name = f"{coverage.gallery}, " if coverage.gallery else ""
    return [f"gallery {name}{coverage.clip_line}", f"queries {coverage.caption_line}", *warnings]
