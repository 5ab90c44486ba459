"""A data set of fifteen clips, for trainings of a fraction of a second, and stores of streams of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conftest import amex, write_lines

from amex.features import ClipRows, create_store, declare_stream, write_part

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


FRAMES = {"network": "frames:x", "weights_sha256": "one", "sampling": {}, "output": {"shape": [8], "dtype": "float32"}}


def drawn_store(folder: Path, streams: Mapping[str, dict[str, Any]], clips: Sequence[Mapping[str, Any]] = ()) -> Path:
    """A store with two random rows of every clip, or caption, in each stream, and its manifest ``m.jsonl``."""
    folder.mkdir(exist_ok=True)
    clips = clips or lines()
    write_lines(folder / "m.jsonl", *clips)
    rng = np.random.default_rng(0)
    store = create_store(folder / "s.zarr")
    for name, spec in streams.items():
        output = spec["output"]
        per_row, per_clip = {"values": output, **output.get("arrays", {})}, output.get("clip_arrays", {})
        ids = [clip["clip_id"] for clip in clips]
        if output.get("of") == "captions":
            ids = list(dict.fromkeys(caption for clip in clips for caption in clip["captions"]))
        else:
            per_row["times"] = {"shape": [2], "dtype": "float64"}

        def drawn(shape: tuple[int, ...], array: dict[str, Any]) -> np.ndarray:
            return rng.integers(1, 3, (*shape, *array["shape"])).astype(array["dtype"])

        rows = [
            ClipRows(
                clip_id=clip_id,
                arrays={key: drawn((2,), array) for key, array in per_row.items()}
                | {key: drawn((), array) for key, array in per_clip.items()},
            )
            for clip_id in ids
        ]
        declare_stream(store, name, spec, {})
        write_part(store, name, "0", spec=spec, clips=rows, failures=[], run={"host": ""})
    return folder / "s.zarr"
