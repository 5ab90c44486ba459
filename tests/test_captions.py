"""Every model reads captions in every form: words, words with given vectors, tokens of a stream, a tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import amex, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_bert
from tiny import lines

from amex import load
from amex.errors import AmexError
from amex.extract.encoders.text import plan_text
from amex.train.checkpoint import load_checkpoint
from amex.train.models.text import average_words
from amex.train.towers import build_tower, freeze_first, tower_settings, tower_vocabulary, word_vectors

CAPTIONS = (
    "a red circle pushes the blue square",
    "the circles is pushed by a square",
    "red moves left",
    "the green, pushing",
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert") / "bert")


@pytest.fixture(scope="module")
def made(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Clips of two rows of noise, with captions, role graphs, and tokens of the BERT."""
    folder = tmp_path_factory.mktemp("made")
    clips = [line | {"captions": [CAPTIONS[i % len(CAPTIONS)]]} for i, line in enumerate(lines())]
    manifest, store = write_lines(folder / "m.jsonl", *clips), folder / "s.zarr"
    np.save(folder / "motion.npy", np.random.default_rng(0).standard_normal((15, 2, 8)).astype(np.float32))
    for command in (
        ("features", "import", folder / "motion.npy", "--captions", manifest, "--store", store),
        ("extract", "--manifest", manifest, "--store", store, "--stream", f"tokens=text:{bert}"),
        ("manifest", "parse", manifest),
    ):
        run = amex(*command)
        assert run.exit_code == 0, run.output
    return store, manifest


def train(made: tuple[Path, Path], work: Path, model: str, *changes: str) -> Any:
    small = ["model.dim=8", "train.epochs=1", "data.batch_size=4"]
    small += ["model.rnn_dim=4", "model.filters=4"] if model == "dual_encoding" else []
    options = [word for change in (*small, *changes) for word in ("--set", change)]
    return amex("train", model, "--store", made[0], "--manifest", made[1], "--work-dir", work, *options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "text"),
    [("amenet", "tower"), ("hgr", "tower"), ("mcsan", "stream"), ("hcmi", "words"), ("dual_encoding", "stream")],
)
def test_every_model_reads_captions_in_every_way(
    model: str, text: str, made: tuple[Path, Path], bert: Path, tmp_path: Path
) -> None:
    changes = {
        "words": ["model.text=words", f"model.word_vectors={bert}"],
        "stream": ["model.text=tokens", *([f"model.tokenizer={bert}"] if model in ("hgr", "mcsan") else [])],
        "tower": [f"model.text=tower:{bert}", "model.tower_layers=1"],
    }[text]
    run = train(made, tmp_path / "w", model, *changes)
    assert run.exit_code == 0, run.output
    assert amex("eval", tmp_path / "w", "--json").exit_code == 0


def test_phrases_are_pooled_from_the_tokens_of_a_stream(made: tuple[Path, Path], bert: Path, tmp_path: Path) -> None:
    run = train(made, tmp_path / "w", "hgr", "model.text=tokens", f"model.tokenizer={bert}")
    assert run.exit_code == 0, run.output
    assert amex("eval", tmp_path / "w").exit_code == 0  # by the tokenizer in the checkpoint
    # A new text is cut at the length at which the stream's model cuts.
    assert len(load(tmp_path / "w", text_encoder=str(bert)).embed_text(["a red circle", "a red circle " * 400])) == 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), sizes=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 4)))
def test_a_word_is_the_mean_of_its_tokens(seed: int, sizes: tuple[int, int, int]) -> None:
    captions, tokens, words = sizes
    rng = np.random.default_rng(seed)
    values, word_of = rng.standard_normal((captions, tokens, 2)), rng.integers(-1, words + 2, (captions, tokens))
    actual = average_words(torch.from_numpy(values), torch.from_numpy(word_of), words)
    for caption in range(captions):
        for word in range(words):
            own = values[caption, word_of[caption] == word]
            assert np.allclose(actual[caption, word], own.mean(0) if len(own) else 0)


def test_each_token_belongs_to_the_word_between_spaces(bert: Path) -> None:
    vocabulary = tower_vocabulary(str(bert))
    assert vocabulary.word_of(["the circles is  pushed", "a red, circle"]) == [
        [-1, 0, 1, 1, 2, 3, -1],
        [-1, 0, 1, 1, 2, -1],
    ]


def test_words_of_a_stream_equal_those_of_its_tower(bert: Path) -> None:
    encoded, _ = plan_text("t", model=str(bert), precision="fp32").encoder("cpu")(list(CAPTIONS))
    words = tower_vocabulary(str(bert)).word_of(CAPTIONS)
    assert [len(arrays["values"]) for arrays in encoded] == [len(places) for places in words]


def test_only_the_last_layers_of_a_tower_are_trained(made: tuple[Path, Path], bert: Path, tmp_path: Path) -> None:
    changes = (f"model.text=tower:{bert}", "model.tower_layers=1", "model.tower_lr=1.0")
    assert train(made, tmp_path / "w", "dual_encoding", *changes).exit_code == 0
    from transformers import BertModel

    before = BertModel.from_pretrained(bert).state_dict()
    after = load_checkpoint(tmp_path / "w").model().reader.tower.state_dict()
    learned = {name for name, value in after.items() if "pooler" not in name and not torch.equal(value, before[name])}
    assert learned
    assert all(name.startswith("encoder.layer.1.") for name in learned)
    tower = build_tower(tower_settings(str(bert)))
    with pytest.raises(AmexError, match="the tower has 2 layers"):
        freeze_first(tower, 3)
    freeze_first(tower, 0)
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_word_vectors_come_from_files_and_tables_of_tokens(bert: Path, tmp_path: Path) -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "v.npz", words=np.array(["red", "blue"]), vectors=vectors)
    (tmp_path / "v.txt").write_text("2 3\nred 0 1 2\nblue 3 4 5\n")
    for name in ("v.npz", "v.txt"):
        actual, known = word_vectors(str(tmp_path / name), ["blue", "unheard", "red"])
        assert known.tolist() == [True, False, True]
        assert actual[known].tolist() == vectors[::-1].tolist()
    from transformers import BertModel

    table = BertModel.from_pretrained(bert).get_input_embeddings().weight.detach()
    number = tower_vocabulary(str(bert)).tokenizer.token_to_id
    actual, known = word_vectors(str(bert), ["circles", "xyzzy"])
    assert known.tolist() == [True, False]
    assert np.allclose(actual[0], table[[number("circle"), number("##s")]].mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.npz", None, "the file does not exist"),
        ("v.txt", "", "it is empty"),
        ("v.txt", "red 1 2\nblue 1\n", "line 2 is not a word and 2 numbers"),
        ("v.txt", "red one two\n", "holds no word vectors"),
        ("v.txt", "red nan 1\n", "line 1"),
        ("v.npz", "red", "holds no word vectors"),
    ],
)
def test_invalid_word_vectors_are_an_error_in_one_line(
    name: str, content: str | None, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(AmexError, match=words) as error:
        word_vectors(str(tmp_path / name), ["red", "blue"])
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_the_tokenizer_of_another_model_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    run = train(made, tmp_path / "w", "hgr", "model.text=tokens", "model.tokenizer=minilm")
    assert run.exit_code == 1
    assert "the tokens of minilm for" in run.output
    assert len(run.output.strip().splitlines()) == 1


def test_a_bag_of_words_needs_a_text_stream(made: tuple[Path, Path], tmp_path: Path) -> None:
    run = train(made, tmp_path / "w", "dual_encoding", "model.text=tower:minilm", "model.text_bag=true")
    assert run.exit_code == 1
    assert "text_bag needs the token features of a stream" in run.output
    assert "trains no text model" in train(made, tmp_path / "w", "clip_mean", "model.text=words").output
