"""Measure ranking for models that compare parts: HGR's scores of all captions with all clips, then all figures.

    python benchmarks/scoring.py [--captions 59800] [--clips 2990] [--phrases 1.0] [--threads 2]

Embeddings are random: captions with up to 4 verbs and 6 nouns, and clips with rows. Making them
is not timed. The reference is the formula written directly, one einsum over every phrase and row, for as many captions
as fit in a call (16,384 pairs), in seconds a pair in the same run. Use the CPU time if other programs run on the
machine; OMP_WAIT_POLICY=PASSIVE excludes waiting threads from it.
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
class RandomEmbeddings:
    """Random embeddings of a split, made a batch at a time; the same batch always has the same values."""

    shape: argparse.Namespace

    def videos(self, places: np.ndarray) -> dict[str, Tensor]:
        """Make the embeddings of some clips."""
        rows, dim = self.shape.rows, self.shape.dim
        draw = torch.Generator().manual_seed(int(places[0]))
        embeddings = {level: torch.randn(len(places), rows, dim, generator=draw) for level in ("verb", "noun")}
        mask = torch.ones(len(places), rows, dtype=torch.bool)
        return embeddings | {"sent": embeddings["verb"][:, 0], "mask": mask}

    def texts(self, places: np.ndarray) -> dict[str, Tensor]:
        """Make the embeddings of some captions."""
        draw = torch.Generator().manual_seed(int(places[0]) + 1_000_003)
        embeddings = {"sent": torch.randn(len(places), self.shape.dim, generator=draw)}
        for level, most in (("verb", 4), ("noun", 6)):
            embeddings[level] = torch.randn(len(places), most, self.shape.dim, generator=draw)
            embeddings[f"{level} mask"] = torch.rand(len(places), most, generator=draw) < self.shape.phrases
        return embeddings

    def batches(self, count: int, make: Callable[[np.ndarray], Any], size: int) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield indices and embeddings, like the batches of a split."""
        for begin in range(0, count, size):
            places = np.arange(begin, min(begin + size, count))
            yield places, make(places)


def direct_phrase_scores(
    frames: Tensor, row_mask: Tensor, phrases: Tensor, phrase_mask: Tensor, sharpness: float
) -> Tensor:
    """Compute ``phrase_scores`` with fusion ``embed`` directly from its formula."""
    cosines = torch.einsum("cpd,vtd->cvpt", normalize(phrases, dim=-1), normalize(frames, dim=-1))
    shown = row_mask[None, :, None]
    attention = normalize(cosines.clamp(min=0).masked_fill(~shown, 0.0), dim=-1, eps=1e-10)
    weights = (sharpness * attention).masked_fill(~shown, -1e4).softmax(-1) * shown
    products = (weights * cosines * frames.norm(dim=-1)[None, :, None]).sum(-1)
    squared = torch.einsum("cvpt,vts,cvps->cvp", weights, frames @ frames.transpose(1, 2), weights)
    fits = products / squared.clamp(min=1e-18).sqrt()
    present = phrase_mask[:, None].to(fits.dtype)
    return (fits * present).sum(-1) / present.sum(-1).clamp(min=1)


def direct_scores(videos: dict[str, Tensor], texts: dict[str, Tensor], sharpness: float) -> Tensor:
    """Compute HGR's score with ``direct_phrase_scores``."""
    levels = [normalize(texts["sent"], dim=-1) @ normalize(videos["sent"], dim=-1).T]
    for level in ("verb", "noun"):
        phrases, mask = texts[level], texts[f"{level} mask"]
        levels.append(direct_phrase_scores(videos[level], videos["mask"], phrases, mask, sharpness))
    return torch.stack(levels).mean(0)


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Call a function; return its result, its seconds and its CPU seconds."""
    started, used = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - started, time.process_time() - used


def main() -> None:
    """Print a row for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("captions", 59_800), ("clips", 2_990), ("rows", 20), ("dim", 1024), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--phrases", type=float, default=1.0, help="share of phrases that are present")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    random, options = RandomEmbeddings(args), Options(streams=["frames"], dim=args.dim)
    model = HGR(options, Inputs(widths={"frames": 1, "text": options.word_dim}, words=2))
    model.encode_videos = model.encode_texts = lambda batch: batch  # type: ignore[assignment]
    split: Any = SimpleNamespace(
        clips=range(args.clips),
        captions=range(args.captions),
        video_batches=lambda size: random.batches(args.clips, random.videos, size),
        caption_batches=lambda size: random.batches(args.captions, random.texts, size),
    )
    scores, *of_scores = timed(lambda: score_split(model, split))
    _, *of_drawing = timed(lambda: [0 for _ in split.caption_batches(256)] + [0 for _ in split.video_batches(64)])
    of_scores = [total - drawing for total, drawing in zip(of_scores, of_drawing, strict=True)]
    own = np.array_split(np.arange(args.captions), args.clips)
    truth = Truth(captions=[captions.tolist() for captions in own], queries=args.captions)
    _, *of_figures = timed(lambda: evaluate(scores, truth))
    _, *of_dsl = timed(lambda: [evaluate(dual_softmax(scores, t2v), truth, groups=False) for t2v in (True, False)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    videos = {name: torch.cat([part[name] for _, part in split.video_batches(64)]) for name in ("verb", "noun", "sent")}
    videos["mask"] = torch.ones(args.clips, args.rows, dtype=torch.bool)
    most = max(1, PAIRS // args.clips)
    _, first = next(split.caption_batches(256))
    calls = [{name: x[most * i : most * (i + 1)] for name, x in first.items()} for i in range(CALLS)]
    with torch.inference_mode():
        results, *of_direct = timed(lambda: [direct_scores(videos, texts, options.sharpness) for texts in calls])
    direct = torch.cat(results)
    difference = (direct - scores.block(slice(0, len(direct)), slice(None))).abs().max() / direct.abs().max()

    pairs = args.captions * args.clips
    table = Table("step", "seconds", "CPU seconds", "CPU microseconds a pair", box=None)
    for name, (wall, used), count in (
        ("scores", of_scores, pairs),
        ("figures of both directions and groups", of_figures, pairs),
        ("figures of dual softmax, both directions", of_dsl, pairs),
        (f"direct scores, {len(direct)} captions", of_direct, direct.numel()),
    ):
        table.add_row(name, f"{wall:.1f}", f"{used:.1f}", f"{1e6 * used / count:.3f}")
    console = Console(width=120)
    console.print(table)
    console.print(f"{args.captions:,} x {args.clips:,}, {args.threads} threads, peak memory {peak:.2f} GB")
    console.print(f"largest difference from the direct scores: {difference:.1e} of the largest score")


if __name__ == "__main__":
    main()
