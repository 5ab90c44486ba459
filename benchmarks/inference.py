"""What models cost when they are used: encoding clips and captions, and scoring pairs, beside each other in one run.

    python benchmarks/inference.py RUN [RUN ...] [--split test] [--repeats 5]

A RUN is a work folder of amex train, with its store and manifest where they were. One thread. Models take turns, and a
figure is the median of its repeats; the first model is what the others are compared to.
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
from amex.train.evaluate import encode, parameters, scores_of
from amex.train.selection import of_split

CLIPS, CAPTIONS = 64, 256


class Used:
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
        """What is timed, and how many items it is for."""
        return {
            "clip": (lambda: self.model.encode_videos(self.video), self.clips),
            "caption": (lambda: self.model.encode_texts(self.text), self.captions),
            "1,000 pairs": (lambda: scores_of(self.model, *self.embeddings), self.pairs / 1000),
        }


def main() -> None:
    """Prints a row a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    used = [Used(run, given.split) for run in given.runs]
    seconds: dict[tuple[int, str], list[float]] = {}
    with torch.inference_mode():
        for _ in range(given.repeats + 1):  # the first warms up
            for number, one in enumerate(used):
                for work, (call, items) in one.works().items():
                    started = time.perf_counter()
                    call()
                    seconds.setdefault((number, work), []).append((time.perf_counter() - started) / items)
    table = Table("model", "parameters", *(f"ms a {work}" for work in used[0].works()), box=None)
    medians = {key: 1000 * statistics.median(values[1:]) for key, values in seconds.items()}
    for number, one in enumerate(used):
        cells = [
            f"{medians[number, work]:.3f} ({medians[number, work] / medians[0, work]:.1f}x)" for work in one.works()
        ]
        table.add_row(one.name, f"{parameters(one.model):,}", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
