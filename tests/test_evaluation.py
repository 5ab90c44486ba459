"""The basis of figures: which captions are queries, which clips the gallery lacks, what chance reaches."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from conftest import amex, write_lines
from hypothesis import given
from hypothesis import strategies as st

from amex.features import ClipRows, Failure, Store, create_store, declare_stream, open_store, write_part
from amex.features.schema import ClipSource
from amex.manifests import Clip, read_manifest
from amex.train.captions import make_text
from amex.train.config import Config, DataOptions, load_config
from amex.train.coverage import FEW_CLIPS, gallery_warning, training_warning
from amex.train.data import Split, inputs
from amex.train.evaluate import evaluate_split, truth_of
from amex.train.metrics import Scores, Truth, chance, evaluate
from amex.train.models import build_model
from amex.train.selection import DataError, choose_clips, refused_states, with_features

DIM = 6
TINY = ("model.text=words", "model.word_dim=4", "model.dim=8", "model.streams=[motion]", "data.batch_size=4")


def add_stream(
    store: Path, name: str, rows: Mapping[str, int], failures: Sequence[str] = (), *, of: str = "clips"
) -> Path:
    """A stream with random rows for each clip, or tokens for each caption, and failed clips."""
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
    assert split.captions == ["a dog", "a cat", "a bird"]  # features are stored by caption
    assert len(split) == 4  # a pair is trained on once
    torch.manual_seed(0)
    model = build_model(config.model, inputs(store, config, split.text))
    result = evaluate_split(model, split)
    assert result["text_to_video"]["queries"] == result["video_to_text"]["gallery"] == 6
    assert result["video_to_text_groups"]["gallery"] == 3
    merged = evaluate_split(model, split, merged=True)
    assert merged["text_to_video"]["queries"] == merged["video_to_text"]["gallery"] == 3


@pytest.mark.parametrize("ties", ["mean", "argsort", "c4c"])
def test_a_repeated_caption_does_not_compete_with_itself(ties: str) -> None:
    """Two clips; the first has one caption twice, the second another."""
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])
    result = evaluate(Scores.of(scores), Truth(captions=[[0, 1], [2]], queries=3), ties=ties)
    assert result["text_to_video"]["R@1"] == result["video_to_text"]["R@1"] == 100
    assert result["text_to_video"]["queries"] == 3
    # Tied with another clip's caption, it is the first of three, the second, or at worst the third.
    tied = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.8]])
    actual = evaluate(Scores.of(tied), Truth(captions=[[0, 1], [2]], queries=3), ties=ties)["video_to_text"]
    assert actual["MeanR"] == pytest.approx({"mean": (4 / 3 + 1) / 2, "argsort": 1.0, "c4c": (1 + 2 + 1) / 3}[ties])


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
    """Clips by split; a letter is the video of one clip."""
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
        (
            {"train": "a b", "val": "c", "test": "c"},
            {},
            "share 1 video ('c'): clips of one video are in both; to allow",
        ),
        ({"train": "a b", "val": "c", "test": "c"}, {"select_on_test": True}, "data.allow_overlap=true"),
        ({"train": "a b", "val": "c", "test": "c"}, {"allow_overlap": True}, None),
        ({"train": "a b", "val": "c", "test": "c.mp4.webm"}, {}, "share 1 video ('c')"),
        ({"train": "a b", "test": "c"}, {"val": "test", "allow_overlap": True}, "data.select_on_test=true"),
        ({"train": "a b", "test": "c"}, {"val": "test", "select_on_test": True}, None),
        ({"train": "a b", "dev": "c", "test": "d"}, {"val": "all"}, "data.val=all and the test split share 1 clip"),
        ({"train": "a b", "test": "d"}, {"val": "test"}, "data.val=test and the test split share 1 clip ('test0')"),
        ({"learn": "a", "dev": "c"}, {"train": "learn", "val": "dev"}, None),
        ({"learn": "a", "dev": "c"}, {"train": "learn", "val": "learn"}, "data.val=learn shares 1 clip ('learn0')"),
    ],
)
def test_clips_and_videos_shared_between_splits_are_refused(
    videos: dict[str, str], data: dict[str, Any], words: str | None
) -> None:
    clips = splits_of(**videos)
    if words is None:
        train, val = choose_clips(clips, DataOptions(**data), "m.jsonl")
        assert train
        assert val
        return
    with pytest.raises(DataError) as refused:
        choose_clips(clips, DataOptions(**data), "m.jsonl")
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
    arguments = ("--store", store, "--manifest", manifest, "--work-dir", run)
    trained = amex("train", "global", *arguments, *settings)
    assert trained.exit_code == 0, trained.output
    tested = json.loads(amex("eval", run, "--split", "test", "--json").stdout)
    assert (tested["split"], tested["clips"]) == ("test", 6)


# In every split, one clip failed and one is empty; of the test captions, one failed and one has no tokens.
LACKING = {"c1": "failed", "c2": "empty", "c11": "failed", "c12": "empty", "c21": "failed", "c22": "empty"}


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that lacks some clips and captions, its manifest, and a run on them."""
    folder = tmp_path_factory.mktemp("partial")
    lines = [
        {
            "clip_id": f"c{i}",
            "video": f"v{i}",
            "split": ("train", "val", "test")[i // 10],
            "captions": [f"thing {i} moves", f"it is number {i}"],
        }
        for i in range(30)
    ]
    manifest = write_lines(folder / "m.jsonl", *lines)
    rows = {line["clip_id"]: 0 if LACKING.get(line["clip_id"]) == "empty" else 3 for line in lines}
    failed = [clip_id for clip_id, state in LACKING.items() if state == "failed"]
    add_stream(folder / "s.zarr", "motion", {key: n for key, n in rows.items() if key not in failed}, failed)
    # Captions of clips that are left out need no features.
    captions = [caption for line in lines if line["clip_id"] not in LACKING for caption in line["captions"]]
    tokens = {caption: 0 if caption == "it is number 24" else 2 for caption in captions if caption != "thing 23 moves"}
    add_stream(folder / "s.zarr", "text", tokens, ["thing 23 moves"], of="captions")
    done = train(folder, manifest)
    assert done.exit_code == 0, done.output
    (folder / "said.txt").write_text(done.output)
    return folder


def train(folder: Path, manifest: Path, *flags: str, work: str = "w") -> Result:
    chosen = ("model.text=text", "model.dim=8", "data.batch_size=4", "train.epochs=1")
    settings = [word for setting in chosen for word in ("--set", setting)]
    arguments = ("--store", folder / "s.zarr", "--manifest", manifest, "--work-dir", folder / work)
    return amex("train", "global", *arguments, *settings, *flags)


def test_clips_that_failed_or_are_empty_are_left_out_and_every_figure_says_so(partial: Path, tmp_path: Path) -> None:
    output = (partial / "said.txt").read_text()
    assert (
        "train: 8 of 10 clips: 1 failed in motion, 1 empty in motion; 16 of 20 captions: 4 of clips left out" in output
    )
    assert "val: 8 of 10 clips" in output
    evaluated = amex("eval", partial / "w")
    assert evaluated.exit_code == 0, evaluated.output
    gallery = "gallery 8 of 10 clips: 1 failed in motion, 1 empty in motion"
    queries = "queries 14 of 20 captions: 1 failed in text, 1 empty in text, 4 of clips left out"
    assert gallery in evaluated.output
    assert queries in evaluated.output
    record = json.loads((partial / "w" / "eval-test.json").read_text())
    assert record["coverage"] == {
        "clips": 8,
        "of_clips": 10,
        "captions": 14,
        "of_captions": 20,
        "clips_left_out": {"failed in motion": 1, "empty in motion": 1},
        "captions_left_out": {"failed in text": 1, "empty in text": 1, "of clips left out": 4},
        "gallery": "",
        "published": None,
    }
    assert (record["text_to_video"]["queries"], record["text_to_video"]["gallery"]) == (14, 8)
    reported = amex("report", partial / "w", "--out", tmp_path / "report")
    assert gallery in reported.output
    page = " ".join((tmp_path / "report" / "index.html").read_text().split())
    assert gallery.replace("gallery", "Gallery:") in page
    assert queries.replace("queries", "Queries:") in page
    assert "train: 8 of 10 clips: 1 failed in motion" in page
    result = amex(
        "search", partial / "w", "thing 9 moves", "--split", "test", "-k", "20", "--html", tmp_path / "s.html"
    )
    assert "8 of 10 clips: 1 failed in motion, 1 empty in motion" in result.output
    assert "8 of 10 clips: 1 failed" in (tmp_path / "s.html").read_text()


def test_figures_are_those_of_a_manifest_without_what_is_left_out(partial: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (partial / "m.jsonl").read_text().splitlines()]
    lost = ("thing 23 moves", "it is number 24")
    kept = [
        line | {"captions": [caption for caption in line["captions"] if caption not in lost]}
        for line in lines
        if line["clip_id"] not in LACKING
    ]
    manifest = write_lines(tmp_path / "kept.jsonl", *kept)
    ways = ("text_to_video", "video_to_text", "video_to_text_groups", "rsum", "chance")
    records = [
        json.loads(amex("eval", partial / "w", "--json", "--out", tmp_path / "e.json", *more).stdout)
        for more in ((), ("--manifest", manifest))
    ]
    assert [records[0][way] for way in ways] == [records[1][way] for way in ways]


@pytest.mark.parametrize("command", ["train", "eval", "report", "search"])
def test_strict_refuses_failed_and_empty_clips(command: str, partial: Path) -> None:
    if command == "train":
        result = train(partial, partial / "m.jsonl", "--strict", work="strict")
    else:
        result = amex(command, partial / "w", *(["a thing"] if command == "search" else []), "--strict")
    assert result.exit_code == 1, result.output
    assert "clips have no rows in stream 'motion', the first 'c" in result.output
    assert "(decode: it is damaged)" in result.output
    assert "without --strict" in result.output
    assert len(result.output.strip().splitlines()) == 1


EXTRACT = "amex extract --manifest M --videos V --store {} --stream motion"
REMEDIES = {
    "failed": f"retry failed clips with {EXTRACT} --retry-failed",
    "empty": "remove empty clips from the manifest",
    "absent": f"extract with {EXTRACT}",
}


@pytest.mark.parametrize("states", [("failed",), ("empty",), ("absent",), ("failed", "empty"), ("failed", "absent")])
def test_strict_says_what_to_do_about_each_state(states: Sequence[str], tmp_path: Path) -> None:
    clips = [Clip(clip_id=state, video=state) for state in ("done", *states)]
    rows = {clip.clip_id: 2 * (clip.clip_id == "done") for clip in clips if clip.clip_id not in ("failed", "absent")}
    failed = ["failed"] if "failed" in states else []
    store = open_store(add_stream(tmp_path / "s.zarr", "motion", rows, failed))
    with pytest.raises(DataError) as refused:
        with_features(store, clips, [store["motion"]], None, refuse=refused_states(strict=True))
    for state, remedy in REMEDIES.items():
        assert (remedy.format(store.path) in str(refused.value)) is (state in states)
    assert ("--retry-failed" in str(refused.value)) is ("failed" in states)


@pytest.mark.parametrize("command", ["train", "eval", "report", "search"])
def test_unextracted_clips_are_an_error_except_in_a_search(command: str, partial: Path, tmp_path: Path) -> None:
    late = [
        {"clip_id": f"late {split}", "video": f"late {split}", "split": split, "captions": ["it is number 3"]}
        for split in ("train", "test")
    ]
    manifest = write_lines(tmp_path / "m.jsonl", *(partial / "m.jsonl").read_text().splitlines(), *late)
    if command == "train":
        result = train(partial, manifest, work="late")
    else:
        more = ("it is number 3", "--split", "test") if command == "search" else ()
        result = amex(command, partial / "w", *more, "--manifest", manifest)
    if command == "search":
        assert result.exit_code == 0, result.output
        assert "8 of 11 clips: 1 failed in motion, 1 empty in motion, 1 not extracted in motion" in result.output
        return
    assert result.exit_code == 1
    assert "1 clip has no rows in stream 'motion', the first 'late t" in result.output
    assert "amex extract --manifest M --videos V" in result.output


def test_a_split_without_usable_clips_is_an_error_that_says_why(tmp_path: Path) -> None:
    lines = [
        {"clip_id": f"c{i}", "video": f"v{i}", "split": "train" if i < 2 else "val", "captions": [f"it is number {i}"]}
        for i in range(4)
    ]
    manifest = write_lines(tmp_path / "m.jsonl", *lines)
    add_stream(tmp_path / "s.zarr", "motion", {f"c{i}": 1 for i in range(4)})
    captions = [line["captions"][0] for line in lines]
    add_stream(tmp_path / "s.zarr", "text", dict.fromkeys(captions[:2], 1), captions[2:], of="captions")
    mute = train(tmp_path, manifest)
    assert mute.exit_code == 1
    assert "no clip of split 'val' has a caption (0 of 2 captions: 2 failed in text)" in mute.output
    shutil.rmtree(tmp_path / "s.zarr")
    add_stream(tmp_path / "s.zarr", "motion", {"c2": 1, "c3": 1}, ["c0", "c1"])
    add_stream(tmp_path / "s.zarr", "text", dict.fromkeys(captions, 1), of="captions")
    lost = train(tmp_path, manifest)
    assert lost.exit_code == 1
    assert "has features of 0 of 2 clips: 2 failed in motion; the first is 'c0'" in lost.output


def test_an_ablation_says_where_variants_have_different_galleries(partial: Path, tmp_path: Path) -> None:
    shutil.copytree(partial / "s.zarr", tmp_path / "s.zarr")
    add_stream(tmp_path / "s.zarr", "frames", {f"c{i}": 2 for i in range(30)})
    variants = {"one": ["model.streams=[motion]"], "other": ["model.streams=[frames]"]}
    model = {"name": "global", "text": "words", "dim": 8}
    config = tmp_path / "c.py"
    config.write_text(f"model = {model}\ntrain = {{'epochs': 1}}\nvariants = {variants}\n")
    arguments = ("--store", tmp_path / "s.zarr", "--manifest", partial / "m.jsonl", "--work-dir", tmp_path / "w")
    both = amex("ablate", config, *arguments, "--seeds", "0", "--variant", "one", "--variant", "other")
    assert both.exit_code == 0, both.output
    assert "one: gallery 8 of 10 clips: 1 failed in motion, 1 empty in motion" in both.output
    assert "other: gallery 10 of 10 clips" in both.output
    shutil.rmtree(tmp_path / "w" / "other")
    alone = amex("ablate", config, *arguments, "--seeds", "0", "--variant", "one")
    assert "\ngallery 8 of 10 clips" in alone.output


def tried_at(
    folder: Path, seconds: Mapping[str, tuple[float | None, float | None]], failed: Sequence[str] = ()
) -> None:
    """Extract clips of the stream ``motion`` again at other times; some fail."""
    stream = open_store(folder / "s.zarr")["motion"]
    sources = {key: ClipSource(start=start, end=end, revision=1) for key, (start, end) in seconds.items()}
    rows = [
        ClipRows(clip_id=key, arrays={"values": np.ones((2, DIM))}, source=source)
        for key, source in sources.items()
        if key not in failed
    ]
    failures = [
        Failure(clip_id=key, video=key, stage="decode", reason="it is damaged", source=sources[key].entry)
        for key in failed
    ]
    write_part(folder / "s.zarr", "motion", "again", spec=stream.spec, clips=rows, failures=failures, run={"host": ""})


def copied(partial: Path, folder: Path) -> Path:
    return shutil.copytree(partial, folder / "partial")


def evaluation_of(folder: Path) -> Result:
    return amex("eval", folder / "w", "--store", folder / "s.zarr", "--manifest", folder / "m.jsonl")


def test_features_of_other_times_than_the_manifests_are_refused(partial: Path, tmp_path: Path) -> None:
    folder = copied(partial, tmp_path)
    tried_at(folder, {"c20": (5.0, 6.0), "c23": (None, None), "c24": (None, 2.0)})
    result = evaluation_of(folder)
    assert result.exit_code == 1
    assert "2 clips of stream 'motion' had other times in the manifest when extracted" in result.output
    assert "the first 'c20': run amex extract again" in result.output


def test_a_failed_clip_whose_times_were_corrected_is_refused_and_not_left_out(partial: Path, tmp_path: Path) -> None:
    folder = copied(partial, tmp_path)
    tried_at(folder, {"c21": (50.0, 60.0), "c24": (None, None)}, failed=["c21"])
    result = evaluation_of(folder)
    assert result.exit_code == 1
    assert "1 clip of stream 'motion' had other times in the manifest when extracted, the first 'c21'" in result.output
    (folder / "m.jsonl").write_text((folder / "m.jsonl").read_text().replace('"v21"', '"v21", "start": 50, "end": 60'))
    corrected = evaluation_of(folder)
    assert corrected.exit_code == 0, corrected.output
    assert "gallery 8 of 10 clips: 1 failed in motion" in corrected.output


@given(st.integers(1, 40), st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any))
def test_chance_equals_the_recall_of_random_rankings(gallery: int, positives: list[int]) -> None:
    truth = [list(range(min(count, gallery))) for count in positives]
    actual = chance(truth, gallery)
    asked = [len(own) for own in truth if own]
    for k in (1, 5, 10, 50):
        missed = [math.comb(gallery - own, min(k, gallery)) / math.comb(gallery, min(k, gallery)) for own in asked]
        assert actual[f"R@{k}"] == pytest.approx(100 * (1 - sum(missed) / len(asked)))


def test_small_galleries_and_training_sets_cause_warnings(partial: Path, tmp_path: Path) -> None:
    output = (partial / "said.txt").read_text()
    assert "warning: 8 clips with captions are too few to train on" in output
    assert "warning: a gallery of 8 clips is too small" in output
    lines = [json.loads(line) for line in (partial / "m.jsonl").read_text().splitlines()]
    alone = write_lines(tmp_path / "alone.jsonl", lines[20] | {"captions": lines[20]["captions"][:1]})
    result = amex("eval", partial / "w", "--manifest", alone, "--out", tmp_path / "alone.json")
    words = "a gallery of 1 clip is too small to evaluate a model: random ranking reaches R@10 100"
    assert f"warning: {words}" in result.output
    assert "rsum 600.0" in result.output
    assert re.search(r"by chance +100\.0 +100\.0 +100\.0", result.output)
    record = json.loads((tmp_path / "alone.json").read_text())
    assert record["warnings"][0].startswith(words)
    assert record["chance"]["text_to_video"]["R@1"] == 100
    reported = amex("report", partial / "w", "--manifest", alone, "--out", tmp_path / "alone")
    assert f"warning: {words}" in reported.output
    page = (tmp_path / "alone" / "index.html").read_text()
    assert f"Warning: {words}" in page
    assert "8 clips with captions are too few to train on" in page


def test_fifty_clips_cause_no_warning() -> None:
    assert not gallery_warning(FEW_CLIPS)
    assert not training_warning(FEW_CLIPS)
    assert gallery_warning(FEW_CLIPS - 1)
    assert training_warning(FEW_CLIPS - 1)
    assert chance([[0]], FEW_CLIPS)["R@10"] == pytest.approx(20)
