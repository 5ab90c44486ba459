"""Streams that a training reads: damage in others is ignored, and empty streams are no candidates."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import amex
from tiny import TINY, tiny_store

from amex.errors import AmexError
from amex.features import declare_stream, open_store
from amex.train.config import load_config
from amex.train.streams import choose_streams

CLIPS = {"network": "other", "output": {"shape": [8], "dtype": "float32", "times": False}}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """``motion`` is intact; the only commit record of ``torn`` is incomplete."""
    store = tiny_store(tmp_path)
    done = amex(
        "features", "import", tmp_path / "motion.npy", "--captions", tmp_path / "m.jsonl", "--store", store,
        "--stream", "torn",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (commit,) = (store / "torn" / "commits").iterdir()
    commit.write_text(commit.read_text()[:-40])
    return store


def chosen(store: Path, *settings: str) -> list[str]:
    options = load_config("global", ["model.text=words", *settings]).model
    return choose_streams(options, open_store(store)).video_streams


@pytest.mark.parametrize("more", [(), ("model.streams=[motion]",)])
@pytest.mark.parametrize("command", ["train", "ablate"])
def test_damage_in_an_unused_stream_does_not_stop_training(store: Path, command: str, more: tuple[str, ...]) -> None:
    settings = (word for setting in (*TINY, "train.epochs=1", *more) for word in ("--set", setting))
    folder = store.parent
    arguments = ("--store", store, "--manifest", folder / "m.jsonl", "--work-dir", folder / "w", *settings)
    result = amex(command, "global", *arguments, *(("--seeds", "0") if command == "ablate" else ()))
    assert result.exit_code == 0, result.output
    # A default training skips the damaged stream and says so, but only if it would have used the stream.
    left_out = [line for line in result.output.splitlines() if line.startswith("left out: ") and "torn" in line]
    assert len(left_out) == (0 if more else 1)


def test_a_damaged_stream_that_is_asked_for_is_an_error(store: Path) -> None:
    with pytest.raises(AmexError, match="torn"):
        chosen(store, "model.streams=[motion, torn]")


def test_damage_is_named_where_no_other_stream_is_left(store: Path) -> None:
    assert amex("features", "rm", store, "motion", "--yes").exit_code == 0
    with pytest.raises(AmexError, match=r"has no stream of clips \(left out: .*torn.*\): make one with amex extract"):
        chosen(store)


def test_a_stream_without_parts_is_not_a_default(store: Path) -> None:
    declare_stream(store, "begun", CLIPS, {})
    assert list(chosen(store)) == ["motion"]
    assert list(chosen(store, "model.streams=[begun]")) == ["begun"]
    assert amex("features", "rm", store, "motion", "--yes").exit_code == 0
    with pytest.raises(AmexError, match="has no stream of clips but begun, which is empty"):
        chosen(store)
