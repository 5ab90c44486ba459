"""Files that `amex search` keeps beside a checkpoint: answers use the current features, also after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import amex
from tiny import TINY, tiny_store

from amex.features import ClipRows, open_store, write_part
from amex.features.schema import ClipSource
from amex.searching import open_run
from amex.train.search import Searcher

QUERY = "a dog chases a cat"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    store = tiny_store(folder)
    settings = (word for setting in (*TINY, "train.epochs=1") for word in ("--set", setting))
    done = amex("train", "global", *settings, "--store", store, "--manifest", folder / "m.jsonl", "--work-dir", folder)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run with its store and manifest."""
    return shutil.copytree(trained, tmp_path / "copy")


def search(run: Path, *more: str) -> dict[str, float]:
    """The score of each clip."""
    arguments = ("--store", run / "s.zarr", "--manifest", run / "m.jsonl", "-k", "15", "--json")
    result = amex("search", run, QUERY, *arguments, *more)
    assert result.exit_code == 0, result.output
    return {hit["clip"]["clip_id"]: hit["score"] for hit in json.loads(result.stdout)}


def test_a_search_uses_features_that_were_extracted_again(run: Path) -> None:
    before = search(run)
    stream = open_store(run / "s.zarr")["motion"]
    source = ClipSource(video="train0.mp4", revision=1)
    rows: dict[str, Any] = {**stream["train0"].arrays, "values": -stream["train0"].values}
    again = [ClipRows(clip_id="train0", arrays=rows, source=source)]
    write_part(run / "s.zarr", "motion", "again", spec=stream.spec, clips=again, failures=[], run={})
    after = search(run)
    changed = {clip for clip in before if not np.isclose(before[clip], after[clip], atol=1e-5)}
    assert changed == {"train0"}


@pytest.mark.parametrize("kept", ["clips.npz", "captions.npz", "clips-Flat.faiss"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_embeddings_are_computed_again(run: Path, kept: str, share: float) -> None:
    before = search(run)
    captions = amex("search", run, "--video", "train0").output
    (cache,) = (run / "embeddings").iterdir()
    for index in cache.glob("*.faiss"):
        if kept.endswith(".npz"):
            index.unlink()
    data = (cache / kept).read_bytes()
    (cache / kept).write_bytes(data[: int(share * len(data))])
    assert search(run) == pytest.approx(before)
    assert amex("search", run, "--video", "train0").output == captions
    assert len((cache / kept).read_bytes()) == len(data)
    assert not list(cache.glob(".*"))


def test_a_killed_search_leaves_no_incomplete_embeddings(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, **arrays: np.ndarray) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    used = open_run(run, run / "s.zarr", run / "m.jsonl")
    searcher = Searcher(used.checkpoint, used.store, used.clips, used.text, lambda stream, texts: [])
    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        searcher.clips_for(QUERY, 1)
    (cache,) = (run / "embeddings").iterdir()
    assert not list(cache.iterdir())
    monkeypatch.undo()
    assert search(run)
