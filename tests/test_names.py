"""Arbitrary names: names that cannot be stored are reported; others are stored unchanged and printed escaped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import amex, extract, write_lines
from hypothesis import given
from hypothesis import strategies as st

from amex.errors import AmexError, printable
from amex.features import MissingClip, create_store, open_store

NAME = "r2plus1d_tiny"
# The fastest stream: a small network that is part of amex.
TINY = ("--stream", NAME, "--weights", f"{NAME}=default")
# A line break, a terminal escape sequence, right-to-left text, rich's markup and emoji.
ODD = ["two\nlines", "\x1b[31mred", "a\u202egpj.exe", "[red]not[/red]", "[/]", ":smile:", "ça va 日本"]


@given(st.text())
def test_printed_text_can_be_displayed_and_encoded(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    assert printable(shown) == shown
    assert str(AmexError(f"a\n{text}")).splitlines()[0] == "a"


def test_an_error_keeps_its_lines_and_quotes_no_key() -> None:
    assert str(AmexError("one\n  two \x1b[31m")) == "one\n  two \\x1b[31m"
    assert str(MissingClip("clip 'a' is not there")) == "clip 'a' is not there"


def test_files_with_names_that_are_not_utf8_are_reported_and_the_rest_is_processed(
    clips: Path, tmp_path: Path, cluster: str
) -> None:
    videos, store = tmp_path / "videos", tmp_path / "s.zarr"
    (videos / "\udcff").mkdir(parents=True)
    for name in ("good.mp4", "caf\udce9.mp4", "\udcff/inside.mp4"):
        shutil.copy(clips / "a.mp4", videos / name)
    result = extract(videos, store, cluster, *TINY, code=3)
    assert result["streams"][NAME] == {"done": 1, "empty": 0, "failed": 0, "absent": 0}
    ledger = json.loads(amex("features", "failures", store, "--json").stdout)
    assert [(entry["clip_id"], entry["stage"]) for entry in ledger] == [
        (r"caf\xe9.mp4", "manifest"),
        (r"\xff/inside.mp4", "manifest"),
    ]
    named = write_lines(
        tmp_path / "m.jsonl",
        {"clip_id": "good.mp4", "video": "good.mp4"},
        {"clip_id": "by id", "video": "inside"},
        {"clip_id": "caf\udce9", "video": "good.mp4"},
        {"clip_id": "torn", "video": "good.mp4", "captions": ["\ud83d"]},
        {"clip_id": "renamed", "video": "good.avi"},
    )
    result = extract(videos, store, cluster, "--manifest", named, *TINY, code=3)
    assert result["streams"][NAME] == {"done": 2, "empty": 0, "failed": 1, "absent": 0}
    assert result["notes"] == ["1 video was found with another extension, good.avi as good.mp4"]
    checked = amex("manifest", "check", named, "--videos", videos).output
    assert "other extension: good.avi: good.mp4" in checked
    assert checked.endswith("of 3 videos, missing: 1 video, manifest: 2 lines\n")
    assert open_store(store)[NAME].failures["by id"].reason == (
        r"video 'inside' is \xff/inside.mp4, a path that is not UTF-8: rename it"
    )
    assert [entry.clip_id for entry in open_store(store).problems] == ["m.jsonl:3", "m.jsonl:4"]
    shown = amex("features", "failures", store)
    assert r"'caf\udce9'" in shown.output


def test_ids_are_stored_unchanged_and_printed_escaped(clips: Path, tmp_path: Path, cluster: str) -> None:
    store = tmp_path / "s.zarr"
    good = [{"clip_id": odd, "video": "a.mp4", "captions": [odd]} for odd in ODD]
    bad = [{"clip_id": f"bad {odd}", "video": f"{odd}://{odd}"} for odd in ODD]
    manifest = write_lines(tmp_path / "m.jsonl", *good, *bad)
    result = extract(clips, store, cluster, "--manifest", manifest, *TINY, code=3)
    assert (result["streams"][NAME]["done"], result["streams"][NAME]["failed"]) == (len(ODD), len(ODD))
    assert set(open_store(store)[NAME]) == set(ODD)
    options = ("--videos", clips, "--store", store, "--cluster", cluster, "--device", "cpu", *TINY)
    printed = [
        amex("features", "ls", store),
        amex("features", "failures", store),
        amex("manifest", "show", manifest, "--limit", 100),
        amex("manifest", "check", manifest, "--videos", clips),
        amex("extract", "--manifest", manifest, *options),
        amex("features", "show", store, ODD[1] + "?", "--videos", clips),
    ]
    for result in printed:
        for line in result.output.split("\n"):
            assert line.isprintable(), line
    for result in printed[:3]:
        for odd in ODD:
            assert printable(odd) in result.output
    assert r"clip '\x1b[31mred?' is not in stream" in printed[5].output


def test_paths_that_standard_output_cannot_encode_are_escaped(tmp_path: Path) -> None:
    store = create_store(tmp_path / "caf\udce9 日本.zarr")
    command = [sys.executable, "-m", "amex.cli", "features", "info", store]
    shown = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "latin-1"}, capture_output=True, check=True)
    assert rb"caf\udce9 \u65e5\u672c.zarr: 0 streams" in shown.stdout
