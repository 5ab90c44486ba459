"""Submission files: other programs compute from them the figures that amex prints, and benchmarks accept them."""

from __future__ import annotations

import csv
import json
import pickle
import zipfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import amex
from hypothesis import given
from hypothesis import strategies as st
from test_moments import WINDOWS, Counting, split_of, videos, world  # noqa: F401
from tiny import TINY, tiny_store

from amex.errors import AmexError
from amex.train.metrics import Scores, Truth, evaluate
from amex.train.moment_answers import TVR, QVHighlights
from amex.train.rankings import ScoredSplit, trec_name, write_ranks, write_run, write_scores
from amex.train.submissions import write_epic_mir, write_mteb
from amex.train.windows import evaluate_moments

IDS = ["a b.mp4", "a%20b.mp4", "deep/er/ü.mkv", "plain", "x\ty"]


def judged(owners: list[list[int]] | None = None, seed: int = 0) -> ScoredSplit:
    """Random scores with some ties, for clips with unusual ids."""
    owners = owners or [[0], [1, 2], [3], [], [4, 5]]
    count = 1 + max(caption for own in owners for caption in own)
    scores = torch.randint(0, 8, (count, len(owners)), generator=torch.Generator().manual_seed(seed)) / 8
    captions = [f'a "dog", number {number}\nruns' for number in range(count)]
    truth = Truth(captions=owners, queries=count)
    return ScoredSplit(scores=Scores.of(scores), truth=truth, captions=captions, clips=IDS[: len(owners)])


def test_scores_can_be_evaluated_again(tmp_path: Path) -> None:
    scored = judged()
    write_scores(tmp_path / "s.npz", scored)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert file["clips"].tolist() == list(scored.clips)
        assert file["captions"].tolist() == list(scored.captions)
        owners: list[list[int]] = [[] for _ in file["clips"]]
        for caption, clip in file["pairs"].tolist():
            owners[clip].append(caption)
        assert file["scores"].dtype == np.float32
        again = evaluate(Scores.of(file["scores"]), Truth(captions=owners, queries=len(file["captions"])))
    assert again == evaluate(scored.scores, scored.truth)


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_written_ranks_give_the_printed_recalls(name: str, tmp_path: Path) -> None:
    scored = judged()
    write_ranks(tmp_path / name, scored, hits=2)
    with (tmp_path / name).open(newline="") as handle:
        if name.endswith("csv"):
            rows = list(csv.DictReader(handle))
            assert list(rows[0]) == ["caption", "clips", "rank", "hit 1", "score 1", "hit 2", "score 2"]
            first = [row["hit 1"] for row in rows]
        else:
            rows = [json.loads(line) for line in handle]
            assert [len(row["hits"]) for row in rows] == [2] * 6
            first = [row["hits"][0]["clip"] for row in rows]
    assert [row["caption"] for row in rows] == list(scored.captions)
    matrix = scored.scores.block(slice(None), slice(None)).numpy()
    assert first == [scored.clips[place] for place in matrix.argmax(axis=1)]
    ranks = [float(row["rank"]) for row in rows]
    figures = evaluate(scored.scores, scored.truth)["text_to_video"]
    assert 100 * np.mean([rank <= 1 for rank in ranks]) == pytest.approx(figures["R@1"])
    assert np.mean(ranks) == pytest.approx(figures["MeanR"])


def test_a_trec_run_gives_the_printed_figures(tmp_path: Path) -> None:
    scored = judged()
    untied = scored.scores.block(slice(None), slice(None)) + torch.rand(6, 5) / 100
    scored = replace(scored, scores=Scores.of(untied))
    write_run(tmp_path / "my.run", scored, tag="amenet")
    run: dict[str, dict[str, float]] = defaultdict(dict)
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for line in (tmp_path / "my.run").read_text().splitlines():
        query, iteration, clip, rank, score, tag = line.split(" ")
        assert (iteration, tag) == ("Q0", "amenet")
        assert int(rank) == len(run[query]) + 1
        run[query][clip] = float(score)
    for line in (tmp_path / "my.qrels").read_text().splitlines():
        query, _, clip, grade = line.split(" ")
        qrels[query][clip] = int(grade)
    assert len(run) == len(qrels) == 6
    assert all(len(found) == 5 for found in run.values())
    queries = dict(line.split("\t") for line in (tmp_path / "my.queries.tsv").read_text().splitlines())
    assert queries["q3"] == 'a "dog", number 3 runs'
    trec = pytest.importorskip("pytrec_eval")
    theirs = trec.RelevanceEvaluator(dict(qrels), {"map", "recip_rank", "recall.5"}).evaluate(dict(run))
    figures = evaluate(scored.scores, scored.truth)["text_to_video"]
    assert 100 * np.mean([each["map"] for each in theirs.values()]) == pytest.approx(figures["mAP"])


@given(st.lists(st.text(), unique=True, max_size=20))
def test_names_in_a_run_have_no_white_space_and_stay_different(names: list[str]) -> None:
    names = [name for name in names if not any(0xD800 <= ord(c) < 0xE000 for c in name)]  # no id contains these
    encoded = [trec_name(name) for name in names]
    assert len(set(encoded)) == len(names)
    assert not any(c.isspace() for name in encoded for c in name)


def test_answers_are_written_beside_the_figures(tmp_path: Path) -> None:
    store = tiny_store(tmp_path)
    chosen = (word for setting in (*TINY, "train.epochs=1") for word in ("--set", setting))
    run = tmp_path / "run"
    arguments = ("--store", store, "--manifest", tmp_path / "m.jsonl", "--work-dir", run)
    assert amex("train", "global", *chosen, *arguments).exit_code == 0
    files = (
        "--scores",
        tmp_path / "s.npz",
        "--ranks",
        tmp_path / "r.jsonl",
        "--run",
        tmp_path / "t.run",
        "--hits",
        "2",
    )
    with_files = json.loads(amex("eval", run, *files, "--json").stdout)
    assert with_files == json.loads(amex("eval", run, "--json").stdout)
    assert len((tmp_path / "t.run").read_text().splitlines()) == 3 * 2
    assert not list(tmp_path.glob(".*"))
    for more, words in (
        (("--ranks", tmp_path / "r.txt"), "must end in .csv or .jsonl"),
        (("--run", tmp_path / "m.jsonl" / "t.run"), "cannot write"),
        (("--scores", tmp_path / "m.jsonl" / "s.npz"), "cannot write"),
        (("--submission", "epic", "x"), "amex eval writes epic_mir and mteb:TASK"),
        (("--submission", "epic_mir", "x.zip"), "needs --sentences"),
        (("--official-hgr", tmp_path, "--run", "x"), "give a checkpoint"),
    ):
        refused = amex("eval", run, *more)
        assert refused.exit_code in (1, 2)
        assert words in refused.output
    refused = amex("moments", run, "--submission", "charades", "x")
    assert "amex moments writes qvhighlights and tvr" in refused.output


def narrated(folder: Path) -> tuple[ScoredSplit, Path]:
    """Clips with one narration each, two of them equal, and the challenge's list of texts."""
    captions = ["take plate", "open door", "take plate"]
    sentences = folder / "EPIC_100_retrieval_test_sentence.csv"
    sentences.write_text("index,sentence\nP01_11_0,take plate\nP01_11_1,open door \n")
    truth = Truth(captions=[[0], [1], [2]], queries=3)
    matrix = np.array([[3.0, 1.0, 2.0], [-1.0, 0.5, 0.0], [3.0, 1.0, 2.0]], np.float32)
    clips = ["P01_11_0", "P01_11_1", "P02_1_7"]
    return ScoredSplit(scores=Scores.of(matrix), truth=truth, captions=captions, clips=clips), sentences


@pytest.mark.parametrize("name", ["mine.zip", "mine.pkl"])
def test_epic_kitchens_reads_its_submission(name: str, tmp_path: Path) -> None:
    scored, sentences = narrated(tmp_path)
    write_epic_mir(tmp_path / name, scored, sentences, (2, 3, 3))
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name) as file:
            assert file.namelist() == ["test.pkl"]
            answers = pickle.loads(file.read("test.pkl"))
    else:
        answers = pickle.loads((tmp_path / name).read_bytes())
    # As in https://competitions.codalab.org/competitions/26138: videos x captions, scores between 0 and 1.
    assert (answers["version"], answers["challenge"]) == ("0.1", "multi_instance_retrieval")
    assert [answers[key] for key in ("sls_pt", "sls_tl", "sls_td")] == [2, 3, 3]
    assert list(answers["vis_ids"]) == ["P01_11_0", "P01_11_1", "P02_1_7"]
    assert list(answers["txt_ids"]) == ["P01_11_0", "P01_11_1"]
    assert answers["sim_mat"].dtype == np.float32
    assert np.allclose(answers["sim_mat"], [[1, 0], [0.5, 0.375], [0.75, 0.25]])


def test_an_incomplete_submission_to_epic_kitchens_is_refused(tmp_path: Path) -> None:
    scored, sentences = narrated(tmp_path)
    sentences.write_text("index,sentence\nP01_11_0,take plate\nP09_1_1,fly\n")
    with pytest.raises(AmexError, match=r"1 sentence without a scored narration, the first 'P09_1_1'"):
        write_epic_mir(tmp_path / "x.zip", scored, sentences, (2, 3, 3))
    scored, sentences = narrated(tmp_path)
    with pytest.raises(AmexError, match=r"must end in \.zip"):
        write_epic_mir(tmp_path / "x.json", scored, sentences, (2, 3, 3))
    with pytest.raises(AmexError, match=r"clip 'a%20b\.mp4' does not have exactly one narration"):
        write_epic_mir(tmp_path / "x.zip", judged(), sentences, (2, 3, 3))
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.slow
def test_mteb_reads_its_result_and_computes_the_printed_figures(tmp_path: Path) -> None:
    pytest.importorskip("mteb")
    from mteb.results import TaskResult

    count = 879  # as in MTEB's gallery of MSR-VTT
    scores = torch.randn(count, count, generator=torch.Generator().manual_seed(0)) + 3 * torch.eye(count)
    truth = Truth(captions=[[number] for number in range(count)], queries=count)
    names = [f"video{number}" for number in range(count)]
    scored = ScoredSplit(scores=Scores.of(scores), truth=truth, captions=names, clips=names)
    figures = evaluate(scored.scores, truth)
    for task, way in (("MSRVTTT2V", "text_to_video"), ("MSRVTTV2T", "video_to_text")):
        write_mteb(tmp_path / f"{task}.json", scored, task, model="amex/amenet", count=1)
        result = TaskResult.from_disk(tmp_path / f"{task}.json")
        (actual,) = result.scores["test"]
        assert result.task_name == task
        assert 100 * actual["recall_at_10"] == pytest.approx(figures[way]["R@10"], abs=1e-3)
        assert 100 * actual["mrr_at_1000"] == pytest.approx(figures[way]["mAP"], abs=1e-3)
        assert actual["main_score"] == actual["ndcg_at_10"]
    for task, words in (
        ("MSRVTTT2W", "MTEB has no task 'MSRVTTT2W'; did you mean 'MSRVTTT2V'"),
        ("MSVDT2VRetrieval", "has 1,320 queries and documents, this split has 1,758"),
        ("STS12", "does not retrieve videos"),
    ):
        with pytest.raises(AmexError, match=words):
            write_mteb(tmp_path / "x.json", scored, task, model="amex/amenet", count=1)


def asked(**more: Any) -> list[Any]:
    """The videos with features from the tests of moments, with numbered queries."""
    clips = [clip for clip in videos(**more) if clip.clip_id != "lost"]
    numbered = [[10 * place + n for n in range(3)] for place in range(len(clips))]
    return [replace(c, extras=c.extras | {"query_ids": ids}) for c, ids in zip(clips, numbered, strict=True)]


def test_qvhighlights_reads_its_submission(world: Path, tmp_path: Path) -> None:  # noqa: F811
    truth = [{"clips": [0], "scores": [[4, 4, 4]]}] * 3
    clips = asked(saliency=truth)
    collected = QVHighlights(WINDOWS)
    result = evaluate_moments(Counting(), split_of(world, clips), clips, WINDOWS, scored=collected)
    collected.write(tmp_path / "hl.jsonl", clips)
    lines = [json.loads(line) for line in (tmp_path / "hl.jsonl").read_text().splitlines()]
    # Requirements of moment_detr's eval_submission: the same query ids; windows with scores; a score every 2 s.
    assert {line["qid"] for line in lines} == {query for clip in clips for query in clip.extras["query_ids"]}
    met = 0
    for line in lines:
        clip = next(clip for clip in clips if clip.clip_id == line["vid"])
        assert line["query"] in clip.captions
        assert len(line["pred_saliency_scores"]) == int(clip.extras["duration"] / 2)
        windows = line["pred_relevant_windows"]
        assert 1 <= len(windows) <= 10
        assert [window[2] for window in windows] == sorted((window[2] for window in windows), reverse=True)
        start, end = clip.extras["moments"][clip.captions.index(line["query"])][0]
        common = min(end, windows[0][1]) - max(start, windows[0][0])
        met += common / (max(end, windows[0][1]) - min(start, windows[0][0])) >= 0.7
    assert 100 * met / len(lines) == pytest.approx(result["figures"]["model"]["R1@0.7"])


def test_tvr_reads_its_submission(world: Path, tmp_path: Path) -> None:  # noqa: F811
    clips = asked()
    split = split_of(world, clips)
    collected = TVR(WINDOWS, Counting(), split)
    result = evaluate_moments(Counting(), split, clips, WINDOWS, scored=collected)
    collected.write(tmp_path / "tvr.json", clips)
    answers = json.loads((tmp_path / "tvr.json").read_text())
    assert list(answers) == ["video2idx", "VCMR", "SVMR", "VR"]
    assert set(answers["video2idx"]) == {clip.clip_id for clip in clips}
    truth = {
        query: (answers["video2idx"][clip.clip_id], *clip.extras["moments"][n][0], clip.captions[n])
        for clip in clips
        for n, query in enumerate(clip.extras["query_ids"])
    }
    hits = dict.fromkeys(("VCMR", "SVMR", "VR"), 0)
    for task in hits:
        assert {entry["desc_id"] for entry in answers[task]} == set(truth)  # otherwise TVR's program stops
        for entry in answers[task]:
            video, start, end, text = truth[entry["desc_id"]]
            assert entry["desc"] == text
            actual = np.array(entry["predictions"], np.float64)
            assert actual.shape[1] == 4
            assert 1 <= len(actual) <= 100
            assert (np.diff(actual[:, 3]) <= 0).all()
            if task == "SVMR":
                assert (actual[:, 0] == video).all()
            if task == "VR":
                assert len(set(actual[:, 0])) == len(actual) == 3
                continue
            common = np.minimum(actual[:, 2], end) - np.maximum(actual[:, 1], start)
            iou = common / (np.maximum(actual[:, 2], end) - np.minimum(actual[:, 1], start))
            hits[task] += bool(((iou >= 0.7) & (actual[:, 0] == video))[: 1 if task == "SVMR" else 100].any())
    assert 100 * hits["SVMR"] / len(truth) == pytest.approx(result["figures"]["model"]["R1@0.7"])
    assert hits["VCMR"] == len(truth)  # all three videos are among the ten that are searched


def test_a_moment_submission_without_all_answers_is_refused(world: Path, tmp_path: Path) -> None:  # noqa: F811
    clips = asked()
    collected = QVHighlights(WINDOWS)
    evaluate_moments(Counting(), split_of(world, clips[:2]), clips[:2], WINDOWS, scored=collected)
    with pytest.raises(AmexError, match="3 queries without features or moments, the first 20"):
        collected.write(tmp_path / "x.jsonl", clips)
    with pytest.raises(AmexError, match="'a' has no saliency: is this the manifest of QVHighlights"):
        collected.write(tmp_path / "x.jsonl", clips[:2])
    with pytest.raises(AmexError, match="lack query_ids"):
        collected.write(tmp_path / "x.jsonl", videos())
    assert not (tmp_path / "x.jsonl").exists()
