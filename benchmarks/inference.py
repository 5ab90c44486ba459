"""Measure the cost of using models, side by side: encoding clips and captions, and scoring pairs.

    python benchmarks/inference.py RUN [RUN ...] [--split test] [--repeats 5]

A RUN is a work folder of amex train; its store and manifest must be at their original paths. One thread. Models take
turns, and each figure is a median; ratios are relative to the first model.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from amex.features import open_store
from amex.manifests import read_manifest
from amex.train.checkpoint import load_checkpoint
from amex.train.data import Split
from amex.train.evaluate import count_parameters, encode, score_embeddings
from amex.train.selection import of_split

CLIPS, CAPTIONS = 64, 256


class TimedModel:
    """A trained model with a batch of clips and captions."""

    def __init__(self, run: Path, split: str) -> None:
        checkpoint = load_checkpoint(run)
        store, manifest = open_store(checkpoint.sources["store"]), Path(checkpoint.sources["manifest"])
        clips = of_split(read_manifest(manifest), split, str(manifest))[:CLIPS]
        config = checkpoint.config
        data = Split(store, clips, config.model, config.data, checkpoint.text(store, manifest))
        self.name, self.model = f"{run}: {config.model.name}", checkpoint.model()
        self.clips, self.captions = len(data.clips), min(CAPTIONS, len(data.captions))
        self.video = self.model.to_device(data.videos(range(self.clips)))
        self.text = self.model.to_device(data.captions_batch(range(self.captions)))
        self.embeddings = encode(self.model, data)
        self.pairs = len(data.captions) * len(data.clips)

    def works(self) -> dict[str, tuple[Callable[[], Any], int]]:
        """Return the functions to time, and the number of items of each."""
        return {
            "clip": (lambda: self.model.encode_videos(self.video), self.clips),
            "caption": (lambda: self.model.encode_texts(self.text), self.captions),
            "1,000 pairs": (lambda: score_embeddings(self.model, *self.embeddings), self.pairs / 1000),
        }


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = [TimedModel(run, args.split) for run in args.runs]
    seconds: dict[tuple[int, str], list[float]] = {}
    with torch.inference_mode():
        for _ in range(args.repeats + 1):  # the first is a warm-up
            for number, model in enumerate(models):
                for work, (call, items) in model.works().items():
                    started = time.perf_counter()
                    call()
                    seconds.setdefault((number, work), []).append((time.perf_counter() - started) / items)
    table = Table("model", "parameters", *(f"ms a {work}" for work in models[0].works()), box=None)
    medians = {key: 1000 * statistics.median(values[1:]) for key, values in seconds.items()}
    for number, model in enumerate(models):
        cells = [
            f"{medians[number, work]:.3f} ({medians[number, work] / medians[0, work]:.1f}x)" for work in model.works()
        ]
        table.add_row(model.name, f"{count_parameters(model.model):,}", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
