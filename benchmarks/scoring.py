"""What ranking costs where parts meet parts: HGR's scores of all captions with all clips, then all figures.

    python benchmarks/scoring.py [--captions 59800] [--clips 2990] [--phrases 1.0] [--threads 2]

Embeddings are drawn: a caption with 4 verbs and 6 nouns, of which a share is there, a clip with its rows. Their making
is not timed. What is compared with is the formula as it is written, one einsum over every phrase and row, on as many
captions as a call may have there (16,384 pairs): its seconds a pair, in the same run. The processor time is the figure
where other programs use the machine too; OMP_WAIT_POLICY=PASSIVE keeps threads that wait out of it.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from amex.train.evaluate import score_split
from amex.train.metrics import Truth, dual_softmax, evaluate
from amex.train.models.hgr import HGR
from amex.train.options import HGR as Options
from amex.train.options import Inputs

PAIRS, CALLS = 1 << 14, 3


@dataclass(frozen=True)
class Drawn:
    """Embeddings of a split, drawn a batch at a time; each batch is always the same."""

    shape: argparse.Namespace

    def videos(self, places: np.ndarray) -> dict[str, Tensor]:
        """Of some clips."""
        rows, dim = self.shape.rows, self.shape.dim
        draw = torch.Generator().manual_seed(int(places[0]))
        made = {level: torch.randn(len(places), rows, dim, generator=draw) for level in ("verb", "noun")}
        return made | {"sent": made["verb"][:, 0], "mask": torch.ones(len(places), rows, dtype=torch.bool)}

    def texts(self, places: np.ndarray) -> dict[str, Tensor]:
        """Of some captions."""
        draw = torch.Generator().manual_seed(int(places[0]) + 1_000_003)
        made = {"sent": torch.randn(len(places), self.shape.dim, generator=draw)}
        for level, most in (("verb", 4), ("noun", 6)):
            made[level] = torch.randn(len(places), most, self.shape.dim, generator=draw)
            made[f"{level} mask"] = torch.rand(len(places), most, generator=draw) < self.shape.phrases
        return made

    def batches(self, count: int, make: Callable[[np.ndarray], Any], size: int) -> Iterator[tuple[np.ndarray, Any]]:
        """Places and embeddings, as a split gives places and features."""
        for begin in range(0, count, size):
            places = np.arange(begin, min(begin + size, count))
            yield places, make(places)


def as_written(frames: Tensor, shown: Tensor, phrases: Tensor, said: Tensor, sharpness: float) -> Tensor:
    """``phrase_scores`` with fusion ``embed``, without a thought for cost."""
    cosines = torch.einsum("cpd,vtd->cvpt", normalize(phrases, dim=-1), normalize(frames, dim=-1))
    shown = shown[None, :, None]
    attention = normalize(cosines.clamp(min=0).masked_fill(~shown, 0.0), dim=-1, eps=1e-10)
    weights = (sharpness * attention).masked_fill(~shown, -1e4).softmax(-1) * shown
    products = (weights * cosines * frames.norm(dim=-1)[None, :, None]).sum(-1)
    squared = torch.einsum("cvpt,vts,cvps->cvp", weights, frames @ frames.transpose(1, 2), weights)
    fits = products / squared.clamp(min=1e-18).sqrt()
    there = said[:, None].to(fits.dtype)
    return (fits * there).sum(-1) / there.sum(-1).clamp(min=1)


def written_scores(videos: dict[str, Tensor], texts: dict[str, Tensor], sharpness: float) -> Tensor:
    """HGR's score by ``as_written``."""
    levels = [normalize(texts["sent"], dim=-1) @ normalize(videos["sent"], dim=-1).T]
    for level in ("verb", "noun"):
        said = texts[level], texts[f"{level} mask"]
        levels.append(as_written(videos[level], videos["mask"], *said, sharpness))
    return torch.stack(levels).mean(0)


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it returns, its seconds, and the processor's."""
    started, used = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - started, time.process_time() - used


def main() -> None:
    """Prints a row for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("captions", 59_800), ("clips", 2_990), ("rows", 20), ("dim", 1024), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--phrases", type=float, default=1.0, help="the share of phrases that are there")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    drawn, options = Drawn(given), Options(streams=["frames"], dim=given.dim)
    model = HGR(options, Inputs(widths={"frames": 1}, words=2))
    model.encode_videos = model.encode_texts = lambda batch: batch  # type: ignore[assignment]
    split: Any = SimpleNamespace(
        clips=range(given.clips),
        captions=range(given.captions),
        video_batches=lambda size: drawn.batches(given.clips, drawn.videos, size),
        caption_batches=lambda size: drawn.batches(given.captions, drawn.texts, size),
    )
    scores, *of_scores = timed(lambda: score_split(model, split))
    _, *of_drawing = timed(lambda: [0 for _ in split.caption_batches(256)] + [0 for _ in split.video_batches(64)])
    of_scores = [all_of_it - drawing for all_of_it, drawing in zip(of_scores, of_drawing, strict=True)]
    own = np.array_split(np.arange(given.captions), given.clips)
    truth = Truth(captions=[some.tolist() for some in own], queries=given.captions)
    _, *of_figures = timed(lambda: evaluate(scores, truth))
    _, *of_dsl = timed(lambda: [evaluate(dual_softmax(scores, way), truth, groups=False) for way in (True, False)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    videos = {name: torch.cat([part[name] for _, part in split.video_batches(64)]) for name in ("verb", "noun", "sent")}
    videos["mask"] = torch.ones(given.clips, given.rows, dtype=torch.bool)
    most = max(1, PAIRS // given.clips)
    _, first = next(split.caption_batches(256))
    calls = [{name: x[most * i : most * (i + 1)] for name, x in first.items()} for i in range(CALLS)]
    with torch.inference_mode():
        found, *of_written = timed(lambda: [written_scores(videos, texts, options.sharpness) for texts in calls])
    written = torch.cat(found)
    apart = (written - scores.block(slice(0, len(written)), slice(None))).abs().max() / written.abs().max()

    pairs = given.captions * given.clips
    table = Table("step", "seconds", "of the processor", "microseconds a pair", box=None)
    for name, (wall, used), count in (
        ("scores", of_scores, pairs),
        ("figures of both directions and groups", of_figures, pairs),
        ("those of dual softmax, both ways", of_dsl, pairs),
        (f"scores as written, {len(written)} captions", of_written, written.numel()),
    ):
        table.add_row(name, f"{wall:.1f}", f"{used:.1f}", f"{1e6 * used / count:.3f}")
    console = Console(width=120)
    console.print(table)
    console.print(f"{given.captions:,} x {given.clips:,}, {given.threads} threads, peak memory {peak:.2f} GB")
    console.print(f"largest difference from the formula as written: {apart:.1e} of the largest score")


if __name__ == "__main__":
    main()
