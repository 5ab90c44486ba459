"""Binary selection: of two captions that differ in one part, the one that fits the clip."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import amex, write_lines
from tiny import TINY, lines, tiny_store

from amex.errors import AmexError
from amex.language import role_parser
from amex.manifests import read_manifest
from amex.train.binary import Question, ask, draw_questions, read_questions

_, parse = role_parser()


class Graphs(dict[str, Any]):
    def __missing__(self, caption: str) -> Any:
        return parse(caption)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("binary")
    store = tiny_store(folder)
    assert amex("manifest", "parse", folder / "m.jsonl").exit_code == 0
    options = [word for change in TINY for word in ("--set", change)]
    done = amex(
        "train", "hgr", "--store", store, "--manifest", folder / "m.jsonl", "--work-dir", folder / "w", *options
    )
    assert done.exit_code == 0, done.output
    return folder / "w"


def test_foils_differ_from_the_caption_in_one_part(tmp_path: Path) -> None:
    clips = read_manifest(write_lines(tmp_path / "m.jsonl", *lines(), {**lines()[0], "clip_id": "x", "video": "x.mp4",
        "captions": ["a man throws a ball", "a ball throws a man"]}))  # fmt: skip
    questions = draw_questions(clips, Graphs())
    assert {question.kind for question in questions} == {"roles", "verb", "agent", "object"}
    by_kind = {(question.caption, question.kind): question.foil for question in questions if question.clip_id != "x"}
    assert by_kind["a dog chases a cat", "roles"] == "a cat chases a dog"
    # A caption of the same clip is no foil.
    assert not [question for question in questions if question.clip_id == "x" and question.kind == "roles"]
    for question in questions:
        words, others = question.caption.split(), question.foil.split()
        assert words != others
        if question.kind == "verb":
            assert (words[:2], words[3:]) == (others[:2], others[3:])
    assert draw_questions(clips, Graphs()) == questions
    assert draw_questions(clips, Graphs(), seed=1) != questions


class ByLength:
    """Replaces a model: the longer text scores higher."""

    def embed_video(self, store: Any, ids: list[str]) -> list[str]:
        return ids

    def score(self, texts: list[str], videos: list[str]) -> np.ndarray:
        return np.array([[len(text)] * len(videos) for text in texts], np.float32)


def write_questions(path: Path, questions: list[Question]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(Question._fields)
        rows.writerows(questions)


def test_ties_count_half(tmp_path: Path) -> None:
    questions = [
        Question("a", "a longer one", "short", "verb"),
        Question("a", "same", "sane", "verb"),
        Question("b", "so", "longer", "roles"),
    ]
    actual = ask(ByLength(), None, questions)  # type: ignore[arg-type]
    assert actual == {
        "verb": {"accuracy": 75.0, "queries": 2},
        "roles": {"accuracy": 0.0, "queries": 1},
        "all": {"accuracy": 50.0, "queries": 3},
    }
    write_questions(tmp_path / "q.csv", questions)
    assert read_questions(tmp_path / "q.csv") == questions


def test_eval_asks_a_file_of_foils_and_those_of_role_graphs(run: Path, tmp_path: Path) -> None:
    write_questions(tmp_path / "q.csv", [Question("test0", "a dog chases a cat", "a cat chases a dog", "roles")])
    for source, kinds in (
        (tmp_path / "q.csv", {"roles", "all"}),
        ("graphs", {"roles", "verb", "agent", "object", "all"}),
    ):
        done = amex("eval", run, "--binary", source, "--json")
        assert done.exit_code == 0, done.output
        answers = json.loads(done.stdout)["binary"]
        assert set(answers) <= kinds
        assert {"roles", "all"} <= set(answers)
    assert "caption or foil, roles" in amex("eval", run, "--binary", tmp_path / "q.csv").output


def test_a_model_ranks_another_data_set_of_the_same_streams(run: Path, tmp_path: Path) -> None:
    """Transfer: trained on one store, evaluated on another with the same feature settings."""
    other = write_lines(
        tmp_path / "other.jsonl",
        *({**line, "clip_id": f"o{line['clip_id']}", "captions": ["a whale eats a fish"]} for line in lines()),
    )
    np.save(tmp_path / "motion.npy", np.random.default_rng(1).standard_normal((15, 2, 8)).astype(np.float32))
    imported = ("features", "import", tmp_path / "motion.npy", "--captions", other, "--store", tmp_path / "o.zarr")
    assert amex(*imported, "--stream", "motion").exit_code == 0
    assert amex("manifest", "parse", other).exit_code == 0
    arguments = ("eval", run, "--store", tmp_path / "o.zarr", "--manifest", other)
    refused = amex(*arguments)
    assert refused.exit_code == 1
    assert "--same-features" in refused.output
    done = amex(*arguments, "--same-features", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["clips"] == 3
    np.save(tmp_path / "motion.npy", np.zeros((15, 2, 9), np.float32))
    assert amex(*imported[:-1], tmp_path / "wide.zarr", "--stream", "motion").exit_code == 0
    wide = amex("eval", run, "--store", tmp_path / "wide.zarr", "--manifest", other, "--same-features")
    assert "was trained on 8 numbers per row of 'motion'" in wide.output


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("", "has no column clip_id"),
        ("clip_id,caption\na,b\n", "has no column foil"),
        ("clip_id,caption,foil\n", "it is empty"),
        ("clip_id,caption,foil\na,b,\n", "line 2 lacks foil"),
        ("clip_id,caption,foil\na\n", "line 2 lacks caption"),
    ],
)
def test_a_file_without_questions_is_an_error_in_one_line(content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "q.csv").write_text(content)
    with pytest.raises(AmexError, match=words) as error:
        read_questions(tmp_path / "q.csv")
    assert "q.csv" in str(error.value)


def test_a_question_about_a_clip_without_features_is_an_error_in_one_line(run: Path, tmp_path: Path) -> None:
    write_questions(tmp_path / "q.csv", [Question("nobody", "a dog chases a cat", "a cat chases a dog")])
    done = amex("eval", run, "--binary", tmp_path / "q.csv")
    assert done.exit_code == 1
    assert "clip 'nobody' has no rows in stream 'motion'" in done.output
