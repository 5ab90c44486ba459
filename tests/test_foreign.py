"""Manifests, annotations and graphs that others wrote: what cannot be used becomes one line that names the file."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import amex, write_lines
from hypothesis import given
from hypothesis import strategies as st

from amex.errors import AmexError
from amex.foreign import NESTED, parse_json, read_json_members, read_lines, reading
from amex.manifests import ManifestError, Problem, read_captions, read_manifest, scan_manifest

DEEP = "[" * 10_000 + "]" * 10_000
NESTED_MORE = "[" * (NESTED + 1) + "]" * (NESTED + 1)
HUGE = "1" * 400
LONGER = "1" * 5000  # than Python converts


def line(*arguments: Any, names: object) -> str:
    """The one line with which a command fails."""
    result = amex(*arguments)
    assert result.exit_code == 1, result.output
    (only,) = result.output.strip().splitlines()
    assert str(names) in only
    assert len(only) < 600
    return only


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@given(values, st.booleans())
def test_json_is_read_as_json_reads_it_with_or_without_a_byte_order_mark(value: object, marked: bool) -> None:
    text = json.dumps(value)
    assert parse_json(b"\xef\xbb\xbf" + text.encode() if marked else text) == value


@given(st.integers(0, 3 * NESTED), st.booleans())
def test_json_is_read_down_to_a_depth_that_all_programs_can_walk(depth: int, objects: bool) -> None:
    text = '{"a":' * depth + "1" + "}" * depth if objects else "[" * depth + "1" + "]" * depth
    if depth <= NESTED:
        parse_json(text)
    else:
        with pytest.raises(ValueError, match="nested more than"):
            parse_json(text)


@given(
    st.lists(values, max_size=5) | st.dictionaries(st.text(), values, max_size=5),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_members_of_json_are_those_of_the_whole_wherever_the_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory, value: Any, chunk: int, marked: bool, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("j") / "j.json"
    text = json.dumps(value, indent=indent)
    path.write_text(text, encoding="utf-8-sig" if marked else "utf-8")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("amex.foreign.CHUNK", chunk)
        members = list(read_json_members(path, ManifestError))
        assert members == (list(value.items()) if isinstance(value, dict) else [(None, item) for item in value])
        for wrong in (text[:-1], text + "]", text[0] + "," + text[1:], text[0] + DEEP):
            path.write_text(wrong)
            with pytest.raises(ManifestError, match=r"^\S+j\.json is not JSON: "):
                list(read_json_members(path, ManifestError))


@pytest.mark.parametrize("text", [DEEP, NESTED_MORE, f"[{HUGE}]", f"[{LONGER}]", "[", "", "\udcff", "\0"])
def test_json_that_cannot_be_used_is_a_value_error_and_nothing_else(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize(
    "error",
    [RecursionError(), MemoryError(), OverflowError("too large"), zlib.error("bad"), zipfile.BadZipFile("a\nb"),
     NotImplementedError("method 97"), KeyError("x"), IndexError(), UnicodeError("\n" * 9), OSError(36, "x")],
)  # fmt: skip
def test_whatever_a_parser_raises_is_one_line_that_names_the_file(error: Exception) -> None:
    with pytest.raises(AmexError, match=r"^f\.bin cannot be read: \S[^\n]*\Z") as caught, reading("f.bin", AmexError):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "record",
    [
        '{"clip_id":"b","video":"v","extras":{"x":?}}'.replace("?", DEEP),
        '{"clip_id":"b","video":"v","extras":{"x":?}}'.replace("?", NESTED_MORE),
        '{"clip_id":"b","video":"v","start":?}'.replace("?", HUGE),
        '{"clip_id":"b","video":"v","extras":{"x":?}}'.replace("?", LONGER),
        '{"clip_id":"b","video":"v","end":1e400}',
        '{"clip_id":"b","video":"v","captions":{"a":1}}',
    ],
    ids=["deep", "nested", "400 digits", "5000 digits", "infinite", "captions"],
)
def test_a_hostile_line_of_a_manifest_costs_only_itself(record: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", '{"clip_id":"a","video":"v"}', record, '{"clip_id":"c","video":"v"}')
    assert [getattr(item, "clip_id", "problem") for item in scan_manifest(path)] == ["a", "problem", "c"]
    line("manifest", "show", path, names="m.jsonl:2")
    line("manifest", "parse", path, names="m.jsonl:2")
    (tmp_path / "videos").mkdir()
    assert amex("manifest", "check", path, "--videos", tmp_path / "videos").exit_code == 3


def test_what_lies_under_the_limit_of_depth_is_written_again(tmp_path: Path) -> None:
    extras = json.loads('{"x":?}'.replace("?", "[" * (NESTED - 3) + "]" * (NESTED - 3)))
    path = write_lines(tmp_path / "m.jsonl", {"clip_id": "a", "video": "v", "extras": extras})
    (clip,) = read_manifest(path)
    assert clip.extras == extras
    assert not isinstance(next(scan_manifest(path)), Problem)


STEP = '{"database":{"v":{"subset":"validation","annotations":[{"segment":[0,?],"id":1,"sentence":"x"}]}}}'
MSRVTT = {
    "MSRVTT_train.9k.csv": "video_id\nv\n",
    "MSRVTT_JSFUSION_test.csv": "key,vid_key,video_id,sentence\na,b,w,x\n",
}
OTHERS = {
    "msrvtt": MSRVTT,
    "folder": {"v.mp4": ""},
    "youcook2": {"youcookii_annotations_trainval.json": STEP.replace("?", "2")},
}
CSV = "video_id,start,end,text\n"


@pytest.mark.parametrize(
    ("dataset", "name", "content", "words"),
    [
        ("youcook2", "a.json", DEEP, "nested more than"),
        ("youcook2", "a.json", STEP.replace("?", HUGE), "400 digits"),
        ("youcook2", "a.json", STEP.replace("?", LONGER), "5000 digits"),
        ("youcook2", "a.json", STEP.replace("?", "NaN"), "finite number"),
        ("youcook2", "a.json", STEP.replace("?", "[]"), "not laid out as expected"),
        ("youcook2", "a.json", "\0\1\2", "is not JSON"),
        ("youcook2", "a.json", "", "is not JSON"),
        ("youcook2", "a.json", None, "youcookii_annotations_trainval.json is missing"),
        ("youcook2", "a.csv", None, "youcookii_annotations_trainval.json is missing"),
        ("youcook2", "a.csv", CSV + f"v,1,{HUGE},x\n", "finite number"),
        ("youcook2", "a.csv", CSV + "v,1\n", "a.csv:2"),
        ("youcook2", "a.csv", CSV + "v,1,2,a dog, running\n", "a.csv:2"),
        ("youcook2", "a.csv", CSV + 'v,1,2,"never closed\n', "not a CSV file"),
        ("youcook2", "a.csv", CSV + f"v,1,2,{'x' * 200_000}\n", "field larger"),
        ("msrvtt", "MSRVTT_data.json", DEEP, "nested more than"),
        ("msrvtt", "MSRVTT_data.json", None, "Is a directory"),
        ("msrvtt", "MSRVTT_train.9k.csv", None, "Is a directory"),
        ("msrvtt", "MSRVTT_data.json", '{"sentences":[5]}', "not laid out as expected"),
        ("folder", "captions.jsonl", None, "Is a directory"),
    ],
)
def test_hostile_annotations_are_one_line_that_names_the_file(
    dataset: str, name: str, content: str | None, words: str, tmp_path: Path
) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    for other, text in OTHERS[dataset].items():
        (folder / other).write_text(text)
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir() if content is None else (folder / name).write_text(content)
    given = folder / name if dataset == "youcook2" else folder
    result = line("manifest", "build", dataset, "--annotations", given, "--out", tmp_path / "m.jsonl", names=folder)
    assert words in result
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("captions.jsonl", '{"video":"v","caption":?}'.replace("?", DEEP)),
        ("captions.jsonl", '{"video":"v","caption":"x","start":?,"end":9}'.replace("?", HUGE)),
        ("captions.jsonl", '{"video":"v","caption":"x","start":0,"end":?}'.replace("?", "1e400")),
        ("captions.jsonl", '{"video":["v"],"caption":"x"}'),
        ("captions.jsonl", '{"video":"v","caption":{"x":1}}'),
        ("captions.jsonl", '{"video":"v","caption":"x","split":5}'),
        ("captions.jsonl", '[["video","v"],["caption","x"]]'),
        ("captions.jsonl", "\0\1\2"),
        ("captions.csv", "v"),
        ("captions.csv", 'v,"never closed,,,'),
        ("captions.csv", "v,a dog, running,,,,,,"),
        ("captions.csv", "../v,leaves,,,"),
        ("captions.csv", "v,\0,,,"),
        ("captions.csv", "v,x,1,1e999,"),
    ],
)
def test_a_hostile_row_of_captions_costs_only_itself(name: str, row: str, tmp_path: Path) -> None:
    (tmp_path / "v.mp4").touch()
    head = "video,caption,start,end,split"
    lines = [head, "v,one,,,", row, "v,two,,,"]
    if name == "captions.jsonl":
        lines = ['{"video":"v","caption":"one","start":"","end":"","split":""}', row, '{"video":"v","caption":"two"}']
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    built = amex("manifest", "build", "folder", "--videos", tmp_path, "--out", tmp_path / "m.jsonl")
    assert built.exit_code == 3, built.output
    assert f"left out: {name}:{3 - (name == 'captions.jsonl')}: " in built.stderr
    assert built.stderr.count("left out") == 1
    assert [clip.captions for clip in read_manifest(tmp_path / "m.jsonl")] == [("one", "two")]


def test_byte_order_marks_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    out = tmp_path / "m.jsonl"
    (tmp_path / "v.mp4").touch()
    for name, content in (
        ("captions.csv", "video,caption\r\nv,a dog\r\n"),
        ("captions.jsonl", '{"video":"v","caption":"a dog"}\r\n'),
    ):
        (tmp_path / name).write_text("\ufeff" + content, encoding="utf-8", newline="")
        assert amex("manifest", "build", "folder", "--annotations", tmp_path, "--out", out).exit_code == 0
        assert [clip.captions for clip in read_manifest(out)] == [("a dog",)]
    (tmp_path / "a.json").write_text("\ufeff" + STEP.replace("?", "2"), encoding="utf-8")
    assert amex("manifest", "build", "youcook2", "--annotations", tmp_path / "a.json", "--out", out).exit_code == 0


@pytest.mark.parametrize("where", ["folder", "x" * 300, "file/m.jsonl"])
def test_a_manifest_that_cannot_be_written_leaves_nothing_behind(where: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "v.mp4").touch()
    line("manifest", "build", "folder", "--annotations", tmp_path, "--out", tmp_path / where, names="cannot write")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "v.mp4"]


def test_names_that_are_too_long_for_the_file_system_are_one_line(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "a", "video": "v"})
    line("manifest", "show", long, names="File name too long")
    line("manifest", "check", manifest, "--videos", long, names=long)
    line("manifest", "build", "folder", "--annotations", long, "--out", manifest, names="File name too long")


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        '{"a dog":?}'.replace("?", NESTED_MORE),
        '{"a dog":?}'.replace("?", LONGER),
        "[]",
        '{"a dog":5}',
        '{"parser":"x","graphs":5}',
        '{"a dog":[{"1":{}},[]]}',
        '{"a dog":[{},[["1","2","V"]]]}',
        "\0",
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_role_graphs_that_no_model_can_use_are_refused_where_they_are_read(
    content: str, known: bool, tmp_path: Path
) -> None:
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "a", "video": "v", "captions": ["a dog"]})
    graphs = tmp_path / ("m.rolegraphs.json" if known else "official.json")
    graphs.write_text(content)
    line("manifest", "parse", manifest, *(() if known else ("--official", graphs)), names=graphs)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ('{"video":"a"}', "duplicate clip 'a', first at"),
        ('{"video":"b","row":0}', "either every line must have a row, or none"),
        ('{"video":"b","captions":{"a":1}}', "a list of texts"),
        ('{"video":5}', "clip_id must be"),
        ('{"video":"b","captions":?}'.replace("?", DEEP), "nested more than"),
        ("[1]", "not a JSON object"),
        ("\0", "not a JSON object"),
    ],
)
def test_a_line_of_captions_that_is_no_clip_is_named(second: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"c\.jsonl:2.*" + words):
        read_captions(write_lines(tmp_path / "c.jsonl", {"video": "a"}, second))


@pytest.mark.parametrize("row", ["0", HUGE, "-1", "1.0", "true", "null", '"1"', "NaN", "[1]"])
def test_rows_are_whole_numbers_each_named_once(row: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", {"video": "a", "row": 0}, '{"video":"b","row":?}'.replace("?", row))
    with pytest.raises(ManifestError, match=r"c\.jsonl:2"):
        read_captions(path)


def test_lines_have_one_limit_whatever_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whole").write_bytes(b"a\n\nb")
    assert list(read_lines(tmp_path / "whole", AmexError)) == [
        (f"{tmp_path / 'whole'}:{number}", text) for number, text in enumerate((b"a\n", b"\n", b"b"), start=1)
    ]
    monkeypatch.setattr("amex.foreign.LINE", 100)
    (tmp_path / "long.tsv").write_text("x" * 200)
    (tmp_path / "long.jsonl").write_text(f'{{"video": "a"}}\n{{"video": "{"x" * 200}"}}\n')
    np.save(tmp_path / "f.npy", np.ones((2, 3)))
    store = ("--store", tmp_path / "s.zarr")
    for words, arguments in (
        ("long.tsv:1 cannot be read: the line is longer", (tmp_path / "long.tsv",)),
        (
            "long.jsonl:2 is not a JSON object: the line is longer",
            (tmp_path / "f.npy", "--captions", tmp_path / "long.jsonl"),
        ),
    ):
        refused = amex("features", "import", *arguments, *store)
        assert (refused.exit_code, words in refused.output) == (1, True), refused.output
