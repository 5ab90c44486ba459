"""Lists of clips, and captions of the user's own videos, become manifests."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from conftest import amex, extract, write_lines

from amex.errors import MissingExtra
from amex.manifests import Clip, ManifestError, Problem, read_manifest, scan_folder, write_manifest
from amex.manifests.columns import guess_columns, parse_captions, parse_seconds, parse_video
from amex.manifests.tables import QUOTED_LINES, open_table

# The published layouts, with one or two clips each.
WEBVID = (
    "videoid,contentUrl,duration,page_dir,name\n"
    '21179416,https://example.org/videos/21179416/preview/stock-a.mp4,PT00H00M11S,006001_006050,"Coast, from above"\n'
)
PANDA = (
    "videoID,url,timestamp,caption,matching_score\n"
    "---SPZz3_uk,https://www.youtube.com/watch?v=---SPZz3_uk,"
    "\"[['0:00:22.977', '0:00:29.450'], ['0:01:30.000', '1:00:35.5']]\","
    '"[\'a man is talking\', ""a dog\'s ball, red""]","[0.46, 0.5]"\n'
)
INTERNVID = {
    "YoutubeID": "K6h2AVc6bqE",
    "Start_timestamp": "00:00:11.000",
    "End_timestamp": "00:00:15.500",
    "Caption": "a man walks",
    "Aesthetic_Score": 4.29,
}
HOWTO100M = {
    "Ko6LKXZf5DY": {"text": ["pour the oil", "stir"], "start": [0.08, 3.5], "end": [5.0, 7]},
    "nVbIUDjzWY4": {"text": ["wait"], "start": [100.25], "end": [103]},
}


def imported(path: Path, *more: object, code: int = 0) -> list[Clip]:
    result = amex("manifest", "import", path, "--out", path.with_suffix(".m"), *more)
    assert result.exit_code == code, result.output
    return read_manifest(path.with_suffix(".m"))


def test_webvid_lists_become_full_videos(tmp_path: Path) -> None:
    (tmp_path / "webvid.csv").write_text(WEBVID)
    assert imported(tmp_path / "webvid.csv") == [
        Clip(clip_id="21179416", video="21179416", captions=("Coast, from above",))
    ]
    (clip,) = imported(tmp_path / "webvid.csv", "--columns", "video=contentUrl")
    assert clip.video == "stock-a.mp4"


def test_different_videos_with_the_same_file_name_are_not_merged(tmp_path: Path) -> None:
    rows = [
        ("1/v.mp4", 0, 5, "one"),
        ("2/v.mp4", 0, 5, "two"),
        ("1/v.mp4?token=x", 6, 9, "again"),
        ("2/v.mp4", 6, 9, "other"),
    ]
    lines = [f"https://x/{address},{start},{end},{text}" for address, start, end, text in rows]
    (tmp_path / "l.csv").write_text("\n".join(["url,start,end,caption", *lines]) + "\n")
    clips = imported(tmp_path / "l.csv", code=3)
    assert [clip.captions for clip in clips] == [("one",), ("again",)]
    result = amex("manifest", "import", tmp_path / "l.csv", "--out", tmp_path / "again.jsonl")
    assert "l.csv:3: another video has the name 'v.mp4' too, https://x/1/v.mp4: use unique ids" in result.output
    assert "l.csv:5" in result.output


@pytest.mark.parametrize("text", ["1,234", "12,345,678"])
def test_an_ambiguous_comma_in_a_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="may be thousands or a fraction"):
        parse_seconds(text)


def test_rows_with_lists_of_times_become_several_clips(tmp_path: Path) -> None:
    (tmp_path / "panda.csv").write_text(PANDA)
    first, second = imported(tmp_path / "panda.csv")
    assert (first.video, first.start, first.end) == ("---SPZz3_uk", 22.977, 29.45)
    assert (second.start, second.end, second.captions) == (90.0, 3635.5, ("a dog's ball, red",))


def test_lines_with_equal_times_are_captions_of_one_clip(tmp_path: Path) -> None:
    other = INTERNVID | {"YoutubeID": "dcIuh7JaxWw"}
    write_lines(tmp_path / "i.jsonl", INTERNVID, other, INTERNVID | {"Caption": "he walks on"})
    assert imported(tmp_path / "i.jsonl") == [
        Clip(
            clip_id="K6h2AVc6bqE_11.0_15.5",
            video="K6h2AVc6bqE",
            start=11.0,
            end=15.5,
            captions=("a man walks", "he walks on"),
        ),
        Clip(clip_id="dcIuh7JaxWw_11.0_15.5", video="dcIuh7JaxWw", start=11.0, end=15.5, captions=("a man walks",)),
    ]


@pytest.mark.parametrize("listed", [False, True])
def test_howto100m_s_captions_are_read_from_their_json(tmp_path: Path, listed: bool) -> None:
    entries = [{"video_id": video, **entry} for video, entry in HOWTO100M.items()] if listed else HOWTO100M
    (tmp_path / "caption.json").write_text(json.dumps(entries))
    clips = imported(tmp_path / "caption.json")
    assert [(clip.clip_id, *clip.captions) for clip in clips] == [
        ("Ko6LKXZf5DY_0.08_5.0", "pour the oil"),
        ("Ko6LKXZf5DY_3.5_7.0", "stir"),
        ("nVbIUDjzWY4_100.25_103.0", "wait"),
    ]
    (tmp_path / "HowTo100M_v1.csv").write_text("video_id,category_1,category_2,rank,task_id\nnVbIUDjzWY4,Cars,,27,5\n")
    assert imported(tmp_path / "HowTo100M_v1.csv") == [Clip(clip_id="nVbIUDjzWY4", video="nVbIUDjzWY4")]
    (tmp_path / "caption.json").write_text(json.dumps(entries)[:-9])
    broken = amex("manifest", "import", tmp_path / "caption.json", "--out", tmp_path / "b.m")
    assert broken.exit_code == 1
    assert "caption.json is not JSON" in broken.stderr
    assert not (tmp_path / "b.m").exists()


def test_parquet_is_read_by_its_columns_and_nested_values_are_lists(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pip install 'amex[export]'")
    import pyarrow.parquet as pq

    columns = {
        "id": [7, 8],
        "url": ["https://youtu.be/K6h2AVc6bqE?t=3", "youtube.com/shorts/dcIuh7JaxWw"],
        "begin": [1.5, None],
        "stop": [2.5, None],
        "text": [["one", "two"], ["three"]],
        "fold": ["training", "validation"],
    }
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    clips = imported(tmp_path / "l.parquet", "--columns", "video=url,caption=text,clip_id=id")
    assert clips == [
        Clip(clip_id="7", video="K6h2AVc6bqE", start=1.5, end=2.5, split="train", captions=("one", "two")),
        Clip(clip_id="8", video="dcIuh7JaxWw", split="val", captions=("three",)),
    ]
    (tmp_path / "l.parquet").write_bytes(b"PAR1 no")
    assert "is not a parquet file" in amex("manifest", "import", tmp_path / "l.parquet", "--out", "x").stderr


def test_parquet_without_its_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"l\.parquet: .*pip install 'amex\[export\]'"):
        open_table(tmp_path / "l.parquet")


def test_bad_rows_are_reported_and_skipped(tmp_path: Path) -> None:
    rows = ["v1,a dog,1,2", "v2,a cat,2,1", ",x,1,2", "v3,a, b,1,2", "v4,,1,2", "v5,x,1,", 'v6,"open,1,2', "v7,z,-1,2"]
    (tmp_path / "l.csv").write_text("video,caption,start,end\n" + "\n".join(rows) + "\nv8,last,0:01,00:00:02.5\n")
    result = amex("manifest", "import", tmp_path / "l.csv", "--out", tmp_path / "m.jsonl", "--limit", "4")
    assert result.exit_code == 3
    assert [clip.clip_id for clip in read_manifest(tmp_path / "m.jsonl")] == ["v1_1.0_2.0", "v8_1.0_2.5"]
    named = [line for line in result.stderr.splitlines() if line.startswith("left out")]
    assert [line.split(": ")[1] for line in named] == ["l.csv:3", "l.csv:4", "l.csv:5", "l.csv:6"]
    assert "left out: 7 of 9 rows" in result.stderr
    assert "a text with ',' in it must be in quotes" in named[2]
    record = json.loads(amex("manifest", "import", tmp_path / "l.csv", "--out", tmp_path / "m.jsonl", "--json").stdout)
    assert (record["rows"], record["clips"], record["problems"]) == (9, 2, 7)
    assert record["first_problems"][-2].startswith("l.csv:8: unexpected end of data")


def test_an_unclosed_quote_affects_only_its_row(tmp_path: Path) -> None:
    many = "".join(f"v{number},x\n" for number in range(QUOTED_LINES + 9))
    (tmp_path / "l.csv").write_text('video,caption\na,"two\nlines"\nb,"open\n' + many)
    rows = list(open_table(tmp_path / "l.csv").rows(["video", "caption"]))
    assert rows[0] == (2, ["a", "two\nlines"])
    assert isinstance(rows[1], Problem)
    assert rows[1].line == 4
    assert rows[2] == (5, ["v0", "x"])
    assert rows[-1] == (QUOTED_LINES + 13, [f"v{QUOTED_LINES + 8}", "x"])


def test_in_tsv_files_a_quote_can_be_a_normal_character(tmp_path: Path) -> None:
    rows = ['a\t"go" she said', 'b\tsix" high', 'c\t"open', 'd\t"in\tquotes"', "e\tlast"]
    (tmp_path / "l.tsv").write_text("video\tcaption\n" + "\n".join(rows) + "\n")
    texts = [text for _, (text,) in open_table(tmp_path / "l.tsv").rows(["caption"])]
    assert texts == ['"go" she said', 'six" high', '"open', "in\tquotes", "last"]


def test_guessed_columns_are_reported_and_missing_columns_list_the_others(tmp_path: Path) -> None:
    (tmp_path / "l.tsv").write_text("Video URL\tTitle\tviews\nhttps://youtu.be/K6h2AVc6bqE\ta dog\t7\n")
    command = ("manifest", "import", tmp_path / "l.tsv", "--out", tmp_path / "m.jsonl")
    result = amex(*command)
    assert "video is Video URL (guessed), caption is Title (guessed); not used: views" in result.stderr
    assert "1 row named the video by the id in an address of YouTube" in result.stdout
    assert (
        "no column 'Titel'; its columns are Video URL, Title, views; did you mean 'Title'?"
        in amex(*command, "--columns", "caption=Titel").stderr
    )
    assert "choose from video, caption" in amex(*command, "--columns", "vide=Title").stderr
    assert "use --columns end=NAME" in amex(*command, "--columns", "start=views").stderr
    assert amex(*command, "--columns", "Title").exit_code == 2
    (tmp_path / "l.tsv").write_text("a\tb\nx\ty\n")
    assert "use --columns video=NAME" in amex(*command).stderr
    (tmp_path / "l.tsv").write_text("video\tstart\tend\nx\t2\t1\n")
    nothing = amex(*command[:4], tmp_path / "none.jsonl")
    assert nothing.exit_code == 1
    assert "none of 1 row is a clip" in nothing.stderr
    assert not (tmp_path / "none.jsonl").exists()


def test_a_clip_id_with_two_different_times_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(
        "clip_id,video,caption,start,end\nx,v,one,0,1\ny,v,two,0,1\nx,v,three,0,2\nx,v,four,0,1\n"
    )
    result = amex("manifest", "import", tmp_path / "l.csv", "--out", tmp_path / "m.jsonl")
    assert result.exit_code == 3
    assert "l.csv:4: clip 'x' has a different video, time or split on line 2" in result.stderr
    assert [clip.captions for clip in read_manifest(tmp_path / "m.jsonl")] == [("one", "four"), ("two",)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3.0), ("3.25", 3.25), (" 1,5 ", 1.5), ("00:00:11.000", 11.0), ("1:02:03,5", 3723.5), ("99:59", None),
     ("59:59", 3599.0), ("1:60", None), ("nan", None), ("inf", None), ("-1", None), (True, None), ([], None),
     ("1_0", None), ("1:2:3:4", None)],
)  # fmt: skip
def test_times_are_seconds_or_clock_times(value: object, expected: float | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="is not a time"):
            parse_seconds(value)
    else:
        assert parse_seconds(value) == expected
    assert parse_seconds("  ") is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://www.youtube.com/watch?list=x&v=K6h2AVc6bqE&t=3s", "K6h2AVc6bqE"),
        ("http://youtu.be/-6h2AVc6bq_", "-6h2AVc6bq_"),
        ("https://www.youtube-nocookie.com/embed/K6h2AVc6bqE", "K6h2AVc6bqE"),
        ("https://example.org/a/b%20c.mp4?x=/y.mp4#z", "b c.mp4"),
        ("s3://bucket/folder/v.webm", "v.webm"),
        ("folder/v.webm", "folder/v.webm"),
        ("https://www.youtube.com/@channel", None),
        ("https://example.org/", None),
        ("http://[/v.mp4", None),
    ],
)
def test_an_address_names_an_id_or_a_file(text: str, name: str | None) -> None:
    if name is None:
        with pytest.raises(ValueError):
            parse_video(text)
    else:
        assert parse_video(text)[0] == name


def test_a_caption_that_begins_with_a_bracket_is_one_caption() -> None:
    assert parse_captions("[music] a man sings") == ["[music] a man sings"]
    assert parse_captions("[music]") == ["[music]"]
    assert parse_captions("['a', \"b's\"]") == ["a", "b's"]
    assert parse_captions("[" * 5000 + "]" * 5000) == ["[" * 5000 + "]" * 5000]


def test_the_more_usual_column_name_wins() -> None:
    assert guess_columns(["url", "videoID", "name", "caption"], {}) == {"video": "videoID", "caption": "caption"}
    assert guess_columns(["id", "url"], {"clip_id": "id"}) == {"clip_id": "id", "video": "url"}
    assert guess_columns(["video", "timestamp", "start", "end"], {}) == {
        "video": "video",
        "start": "start",
        "end": "end",
    }


def test_ten_times_as_many_rows_need_no_more_memory(tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from amex.manifests.lists import choose_columns, import_list\n"
        "table, columns = choose_columns(Path(sys.argv[1]), {})\n"
        "result = import_list(table, columns, Path(sys.argv[1] + '.m'), report=print)\n"
        "print(result.clips, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for rows in (1_000, 30_000):
        path = tmp_path / f"{rows}.csv"
        path.write_text(
            "video,caption\n" + "".join(f"v{number % (rows - 1)},caption {number}\n" for number in range(rows))
        )
        run = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True)
        clips, peak = map(int, run.stdout.split())
        assert clips == rows - 1
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 10_000  # kB; the rows alone have 2 MB as text, and 15 MB as objects


def test_unusable_caption_rows_are_recorded_as_problems(clips: Path, tmp_path: Path, cluster: str) -> None:
    folder, store = tmp_path / "folder", tmp_path / "s.zarr"
    folder.mkdir()
    for name in ("a.mp4", "c.avi"):
        (folder / name).symlink_to(clips / name)
    rows = ["a.mp4;a dog;train", "b.webn;a cat;train", "c.avi;y;tset", "c;z;test"]
    (folder / "captions.csv").write_text(" Video ;CAPTION;split\n" + "\n".join(rows) + "\n", encoding="utf-8-sig")
    assert len(extract(folder, store, cluster, code=3)["problems"]) == 2
    output = amex("features", "failures", store).output
    assert "captions.csv:3" in output
    assert "no video 'b.webn'" in output
    assert "captions.csv:4" in output
    assert "unknown split 'tset'; use train, val or test; did you mean 'test'?" in output
    built = amex("manifest", "build", "folder", "--videos", folder, "--out", tmp_path / "m.jsonl")
    assert built.exit_code == 3
    written = read_manifest(tmp_path / "m.jsonl")
    write_manifest([*written, Clip(clip_id="e", video="e.mp4", start=0, end=1)], tmp_path / "more.jsonl")
    command = ("manifest", "filter", tmp_path / "more.jsonl", "--out", tmp_path / "f.jsonl")
    result = amex(*command, "--store", store)
    assert "left out: 1 clip absent in r2plus1d_18" in result.output
    assert read_manifest(tmp_path / "f.jsonl") == written
    result = amex(*command, "--videos", folder, "--min-seconds", "2", "--split", "test")
    assert "left out: 1 clip in split 'train'" in result.output
    assert "left out: 1 clip in no split" in result.output
    assert "kept: 1 clip to the end of the video, of unknown length" in result.output
    assert [clip.clip_id for clip in read_manifest(tmp_path / "f.jsonl")] == ["c.avi"]
    assert "no clip is in split 'tests'; there is test, train" in amex(*command, "--split", "tests").stderr
    assert "give both" in amex(*command, "--stream", "x").stderr
    assert "nothing to filter by" in amex(*command).stderr
    assert amex(*command, "--store", store, "--stream", "x").exit_code == 1


def test_a_build_reports_all_missing_options_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "folder needs --videos and --out" in amex("manifest", "build", "folder").stderr
    assert "did you mean 'youcook2'" in amex("manifest", "build", "yucook2").stderr
    assert "--videos is for folder" in amex("manifest", "build", "msrvtt", "--videos", ".").stderr
    assert "choose from official" in amex("manifest", "build", "youcook2:x").stderr
    two = amex("manifest", "build", "youcook2:howto100m", "--protocol", "official")
    assert (two.exit_code, "two protocols" in two.stderr) == (2, True)
    lists = tmp_path / "root" / "youcook2" / "annotations"
    lists.mkdir(parents=True)
    file, manifest_file = (
        lists / "youcookii_annotations_trainval.json",
        tmp_path / "root" / "youcook2" / "official.jsonl",
    )
    step = {"segment": [1, 2], "id": 0, "sentence": "stir"}
    file.write_text(json.dumps({"database": {"v": {"subset": "validation", "annotations": [step]}}}))
    built = amex("manifest", "build", "youcook2:official", "--root", "root")
    assert built.exit_code == 0, built.output
    (clip,) = read_manifest(manifest_file)
    assert clip.extras["protocol"] == "youcook2:official"
    monkeypatch.setenv("AMEX_ROOT", str(tmp_path / "root"))
    manifest_file.unlink()
    assert amex("manifest", "build", "youcook2", "--annotations", file).exit_code == 0
    assert read_manifest(manifest_file) == [clip]


def test_captions_files_can_have_splits_and_unused_columns_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).touch()
    rows = ["a,0,1,train", "a,2,3,Testing", "b,,,val", "b,0:01,00:00:02.5,"]
    (tmp_path / "captions.csv").write_text("video,start,end,split\n" + "\n".join(rows) + "\n")
    by_id = {clip.clip_id: clip for clip in scan_folder(tmp_path)}
    assert {name: clip.split for name, clip in by_id.items()} == {
        "a.mp4_0.0_1.0": "train",
        "a.mp4_2.0_3.0": "test",
        "b.mp4": "val",
        "b.mp4_1.0_2.5": "",
        "c.mp4": "",
    }
    assert "1 video has clips in several splits, the first a.mp4 (train, test)" in caplog.text
    caplog.clear()
    (tmp_path / "captions.csv").write_text("video\tCaptions\tSplit\tnotes\na\tx\ttrain\ty\na\tx\ttest\ty\n")
    *_, problem = sorted(scan_folder(tmp_path), key=lambda item: isinstance(item, Problem))
    assert str(problem) == "captions.csv:3: the clip is in split 'test' here, and in 'train' on line 2"
    assert "not used: columns 'Captions', 'notes'; did you mean 'caption'?" in caplog.text
    for head, lacking in (("video,text", "caption"), ("file,caption", "video"), ("Vidoe,caption", "video")):
        (tmp_path / "captions.csv").write_text(f"{head}\na,b\n")
        with pytest.raises(ManifestError, match=rf"captions\.csv has no column .*; did you mean '{lacking}'\?"):
            list(scan_folder(tmp_path))
    (tmp_path / "captions.csv").write_text("video;caption\na;caf\xe9\nb;fine\n", encoding="cp1252")
    (problem,) = [item for item in scan_folder(tmp_path) if isinstance(item, Problem)]
    assert str(problem) == "captions.csv:2: it is not UTF-8: save the list as UTF-8"
    (tmp_path / "captions.csv").write_text("video\tcaption\na\tcaf\xe9\n", encoding="utf-16")
    assert next(iter(scan_folder(tmp_path))).captions == ("caf\xe9",)


def scanned(folder: Path, *names: str, captions: str) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the captions of the clips of a folder with these videos, and the problems."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "captions.csv").write_text(captions, encoding="utf-8")
    items = list(scan_folder(folder))
    problems = [str(item) for item in items if isinstance(item, Problem)]
    return {item.clip_id: item.captions for item in items if isinstance(item, Clip)}, problems


def test_names_match_in_any_unicode_form(tmp_path: Path) -> None:
    """macOS writes an accent as a separate character, keyboards as one character."""
    apart = unicodedata.normalize("NFD", "Übung/Ä b.mp4")
    rows = "video,caption\nÜbung/Ä b.mp4,one\nÄ b,two\nÜbung/Ä b.avi,three\n"
    assert scanned(tmp_path, apart, captions=rows) == ({apart: ("one", "two", "three")}, [])


def test_attribute_files_of_macos_are_ignored(tmp_path: Path) -> None:
    clips, problems = scanned(tmp_path, "a.mp4", "._a.mp4", "sub/._b.mov", ".c.mp4", captions="video,caption\na,x\n")
    assert (clips, problems) == ({".c.mp4": (), "a.mp4": ("x",)}, [])


def test_an_unknown_video_in_a_row_gets_a_suggestion(tmp_path: Path) -> None:
    rows = "video,caption\nclip7050.mp4,x\n" + "clip7050.mp4,x\n" * 100 + "same.mp4,x\n"
    _, problems = scanned(tmp_path, "clip7500.mp4", "other.mp4", "a/same.mp4", "b/same.mp4", captions=rows)
    assert problems[0].endswith("no video 'clip7050.mp4' below " + f"{tmp_path}; did you mean 'clip7500.mp4'?")
    assert problems[100].endswith(f"below {tmp_path}")  # after many unknown videos there are no suggestions
    assert problems[-1].endswith("a/same.mp4, b/same.mp4; name one by its path, or keep one of them")


def test_a_file_instead_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    output = amex("extract", tmp_path / "a.mp4", "--store", tmp_path / "s.zarr").output
    assert output == f"Error: {tmp_path / 'a.mp4'} is not a folder: give the folder of the videos\n"
    output = amex("extract", tmp_path / "b", "--store", tmp_path / "s.zarr").output
    assert output == f"Error: the videos folder {tmp_path / 'b'} does not exist\n"


def test_full_videos_do_not_count_as_0_hours(tmp_path: Path) -> None:
    write_manifest([Clip(clip_id="a", video="a")], tmp_path / "m.jsonl")
    output = amex("manifest", "stats", tmp_path / "m.jsonl").output
    assert "  1 clip to the end of the video, of unknown length\n" in output
    assert " hours" not in output
