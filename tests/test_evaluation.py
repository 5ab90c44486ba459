"""What a figure is of: which captions are queries, which clips the gallery lacks, what chance would reach."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import amex

from amex.features import ClipRows, Failure, Store, create_store, declare_stream, open_store, write_part
from amex.manifests import Clip, read_manifest
from amex.train.config import Config, Data, load_config
from amex.train.data import DataError, Split, choose_clips, inputs, make_text
from amex.train.evaluate import evaluate_split, truth_of
from amex.train.metrics import Scores, Truth, evaluate
from amex.train.models import build_model

DIM = 6
TINY = ("model.text=words", "model.word_dim=4", "model.dim=8", "model.streams=[motion]", "data.batch_size=4")


def add_stream(
    store: Path, name: str, rows: Mapping[str, int], failures: Sequence[str] = (), *, of: str = "clips"
) -> Path:
    """A stream with so many random rows of each clip, or tokens of each caption, and clips that failed."""
    output = {"shape": [DIM], "dtype": "float32"} | ({"of": "captions"} if of == "captions" else {"times": False})
    spec = {"network": "random", "output": output}
    rng = np.random.default_rng(len(rows))
    made = [ClipRows(clip_id=key, arrays={"values": rng.standard_normal((n, DIM))}) for key, n in rows.items()]
    failed = [Failure(clip_id=key, video=key, stage="decode", reason="it is damaged") for key in failures]
    declare_stream(create_store(store), name, spec, {})
    write_part(store, name, "0", spec=spec, clips=made, failures=failed, run={"host": ""})
    return store


def of_clips(store: Store, clips: Sequence[Clip], *settings: str) -> tuple[Config, Split]:
    config = load_config("global", [*TINY, *settings])
    return config, Split(store, clips, config.model, config.data, make_text(store, config, clips, Path("m.jsonl")))


def test_a_caption_that_a_clip_repeats_is_a_query_each_time(tmp_path: Path) -> None:
    said = [("a dog", "a cat", "a dog"), ("a dog",), ("a bird", "a bird")]
    clips = [Clip(clip_id=f"c{i}", video=f"v{i}", captions=captions) for i, captions in enumerate(said)]
    store = open_store(add_stream(tmp_path / "s.zarr", "motion", {clip.clip_id: 2 for clip in clips}))
    config, split = of_clips(store, clips, "data.captions=all")
    assert split.captions == ["a dog", "a cat", "a bird"]  # features are kept by caption
    assert len(split) == 4  # a pair is trained on once
    torch.manual_seed(0)
    model = build_model(config.model, inputs(store, config.model, split.text))
    result = evaluate_split(model, split)
    assert result["text_to_video"]["queries"] == result["video_to_text"]["gallery"] == 6
    assert result["video_to_text_groups"]["gallery"] == 3
    merged = evaluate_split(model, split, merged=True)
    assert merged["text_to_video"]["queries"] == merged["video_to_text"]["gallery"] == 3


@pytest.mark.parametrize("ties", ["mean", "argsort", "c4c"])
def test_a_repeated_caption_is_no_rival_of_itself(ties: str) -> None:
    """Two clips; the first says one thing twice, the second another."""
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])
    result = evaluate(Scores.of(scores), Truth(captions=[[0, 1], [2]], queries=3), ties=ties)
    assert result["text_to_video"]["R@1"] == result["video_to_text"]["R@1"] == 100
    assert result["text_to_video"]["queries"] == 3
    # Tied with another clip's caption it is the first of three, the second, or in the worst case the third of them.
    tied = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.8]])
    found = evaluate(Scores.of(tied), Truth(captions=[[0, 1], [2]], queries=3), ties=ties)["video_to_text"]
    assert found["MeanR"] == pytest.approx({"mean": (4 / 3 + 1) / 2, "argsort": 1.0, "c4c": (1 + 2 + 1) / 3}[ties])


def test_msvds_test_split_has_27763_queries(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "annotations" / "msvd"
    captions = json.loads((folder / "captions_msvd.json").read_text())
    clips = [
        Clip(clip_id=name, video=name, captions=captions[name])
        for name in (folder / "test_list.txt").read_text().split()
    ]
    store = open_store(add_stream(tmp_path / "s.zarr", "motion", {clip.clip_id: 1 for clip in clips}))
    _, split = of_clips(store, clips)
    truth, asked = truth_of(split)
    assert (truth.queries, len(asked), len(truth.captions)) == (27_763, 27_763, 670)
    assert truth_of(split, merged=True)[0].queries == 22_285


def splits_of(**videos: str) -> list[Clip]:
    """Clips by split; a letter is the video of one."""
    return [
        Clip(clip_id=f"{split}{place}", video=video, split=split)
        for split, named in videos.items()
        for place, video in enumerate(named.split())
    ]


@pytest.mark.parametrize(
    ("videos", "data", "words"),
    [
        ({"train": "a b", "val": "c", "test": "d e"}, {}, None),
        ({"train": "a b", "val": "a", "test": "d"}, {}, "data.val=val shares 1 video ('a')"),
        ({"train": "a b", "val": "c", "test": "a.mp4 b.mkv"}, {}, "the test split shares 2 videos ('a', ...)"),
        ({"train": "a b", "val": "c", "test": "a"}, {"select_on_test": True}, "data.allow_overlap=true"),
        ({"train": "a b", "val": "c", "test": "a"}, {"allow_overlap": True}, None),
        ({"train": "a b", "val": "c", "test": "c"}, {"allow_overlap": True}, "data.select_on_test=true"),
        ({"train": "a b", "val": "c", "test": "c"}, {"select_on_test": True}, None),
        ({"train": "a b", "dev": "c", "test": "d"}, {"val": "all"}, "data.val=all and the test split share 1 clip"),
        ({"train": "a b", "test": "d"}, {"val": "test"}, "data.val=test and the test split share 1 clip ('test0')"),
        ({"learn": "a", "dev": "c"}, {"train": "learn", "val": "dev"}, None),
        ({"learn": "a", "dev": "c"}, {"train": "learn", "val": "learn"}, "data.val=learn shares 1 clip ('learn0')"),
    ],
)
def test_no_clip_and_no_video_trains_or_selects_where_it_is_evaluated(
    videos: dict[str, str], data: dict[str, Any], words: str | None
) -> None:
    clips = splits_of(**videos)
    if words is None:
        train, val = choose_clips(clips, Data(**data), "m.jsonl")
        assert train
        assert val
        return
    with pytest.raises(DataError) as refused:
        choose_clips(clips, Data(**data), "m.jsonl")
    assert words in str(refused.value)


def test_youcook2_is_built_trained_and_tested_as_the_readme_says(tmp_path: Path) -> None:
    steps = [
        {"segment": [5 * i, 5 * i + 4], "id": i, "sentence": f"{word} it"} for i, word in enumerate(("cut", "fry"))
    ]
    videos = {f"v{i}": {"subset": "training" if i < 9 else "validation", "annotations": steps} for i in range(12)}
    (tmp_path / "a.json").write_text(json.dumps({"database": videos}))
    manifest, store, run = tmp_path / "yc2.jsonl", tmp_path / "yc2.zarr", tmp_path / "run"
    built = amex("manifest", "build", "youcook2", "--annotations", tmp_path / "a.json", "--out", manifest)
    assert built.exit_code == 0, built.output
    add_stream(store, "motion", {clip.clip_id: 2 for clip in read_manifest(manifest)})
    settings = [word for setting in (*TINY, "train.epochs=1") for word in ("--set", setting)]
    given = ("--store", store, "--manifest", manifest, "--work-dir", run)
    trained = amex("train", "global", *given, *settings)
    assert trained.exit_code == 0, trained.output
    tested = json.loads(amex("eval", run, "--split", "test", "--json").stdout)
    assert (tested["split"], tested["clips"]) == ("test", 6)
