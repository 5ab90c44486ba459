"""A data set of fifteen clips, for trainings of a fraction of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from conftest import amex, write_lines

SIZES = {"train": 9, "val": 3, "test": 3}
WORDS = ("dog", "cat", "horse", "car", "boat")
TINY = (
    "model.text=words", "model.word_dim=4", "model.dim=8", "data.batch_size=4", "train.lr=0.01", "train.epochs=4",
    "train.schedule=constant",
)  # fmt: skip


def lines(**more: list[str]) -> list[dict[str, Any]]:
    """A manifest's lines; ``more`` replaces the captions of clips."""
    made = []
    for split, size in SIZES.items():
        for i in range(size):
            clip = f"{split}{i}"
            captions = more.get(clip, [f"a {WORDS[i % 5]} chases a {WORDS[(i + 1) % 5]}"])
            made.append({"clip_id": clip, "video": f"{clip}.mp4", "split": split, "captions": captions})
    return made


def tiny_store(folder: Path) -> Path:
    """Two rows of eight numbers for each clip of ``lines``, as stream ``motion``."""
    folder.mkdir(exist_ok=True)
    manifest = write_lines(folder / "m.jsonl", *lines())
    np.save(folder / "motion.npy", np.random.default_rng(0).standard_normal((15, 2, 8)).astype(np.float32))
    done = amex("features", "import", folder / "motion.npy", "--captions", manifest, "--store", folder / "s.zarr")
    assert done.exit_code == 0, done.output
    return folder / "s.zarr"
