"""Calls of the public interface as a user writes them, for mypy: each result has the type that the reference names."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

import amex
from amex.features.dataset import JoinedDataset, StreamDataset

store = amex.open_store("my.zarr")
assert_type(store, amex.Store)
stream = store["r2plus1d_18"]
assert_type(stream, amex.Stream)
rows = stream["a.mp4"]
assert_type(rows, amex.Rows)
assert_type(rows.values, NDArray[Any])
assert_type(rows.times, NDArray[np.float64])
assert_type(len(rows), int)
batch = stream.read(["a.mp4", "b.webm"], arrays=["values"])
assert_type(batch, amex.Batch)
assert_type([clip.values for clip in batch], list[NDArray[Any]])
assert_type(list(stream), list[str])
assert_type(stream.state("a.mp4"), str)
assert_type({clip: failure.reason for clip, failure in stream.failures.items()}, dict[str, str])
assert_type(stream.dataset(), StreamDataset)
assert_type(store.dataset(["r2plus1d_18", "objects"]), JoinedDataset)
for item in DataLoader(stream.dataset(list(stream)), batch_size=2):
    item["values"]
assert_type(stream.dataset()[0], dict[str, torch.Tensor])

assert_type(amex.extract("my_videos", "r2plus1d_18", "my.zarr"), amex.Store)
assert_type(amex.extract(Path("my_videos"), ["r2plus1d_18", "text_bert"], Path("my.zarr")), amex.Store)
assert_type(amex.extract(["my_videos/a.mp4"], {"motion": "r2plus1d_18"}, "my.zarr", folder="my_videos"), amex.Store)
clips = [amex.Clip(clip_id="a", video="a.mp4", start=0.5, end=2, captions=("a dog",))]
assert_type(amex.extract(clips, None, "my.zarr", folder="my_videos", settings={"x": {"stride": 8}}), amex.Store)
assert_type(amex.extract_file("a.mp4", "r2plus1d_18", start=0.5, settings={"stride": 8}), amex.Rows)

fitted = amex.fit("amenet", store="my.zarr", work_dir="run", settings=["train.epochs=2"])
assert_type(fitted, amex.FitResult)
model = amex.load(fitted.best)
assert_type(model, amex.TrainedModel)
videos = model.embed_video(store, ["a.mp4"])
assert_type(videos, amex.Embedded)
model.embed_video({"r2plus1d_18": np.zeros((1, 4, 512), np.float32)})
model.embed_video({"r2plus1d_18": [np.zeros((4, 512), np.float32)]})
model.embed_video({"objects": [{"values": np.zeros((4, 3, 512)), "counts": np.full(4, 3)}]})
assert_type(model.score(["a dog"], videos), NDArray[np.float32])
assert_type(model.rank(model.embed_text(["a dog"]), videos, top=1), list[list[amex.Ranked]])
clip_id, score = model.rank(["a dog"], videos)[0][0]
assert_type(clip_id, str)
assert_type(score, float)

hits = amex.search("my.zarr", "a dog", top=3)
assert_type(hits, list[amex.Hit])
assert_type(hits[0].clip, amex.Clip)
assert_type(hits[0].start, float | None)

try:
    amex.open_store("nowhere")
except amex.AmexError as error:
    print(error)

amex.search("my.zarr", 3)  # type: ignore[arg-type]
amex.extract_file("a.mp4", "r2plus1d_18", strides=8)  # type: ignore[call-arg]
