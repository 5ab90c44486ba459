"""Known data sets read the published files, and their tables match the files."""

from __future__ import annotations

import functools
import http.server
import json
import os
import pickle
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import amex

from amex.features import open_store
from amex.foreign import file_sha256
from amex.manifests import (
    DATASETS,
    AnnotationFile,
    Clip,
    Dataset,
    ManifestError,
    Problem,
    Protocol,
    dataset,
    named,
    read_manifest,
)

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "datasets.md"
PROTOCOLS = [f"{name}:{protocol}" for name, entry in DATASETS.items() for protocol in entry.protocols]


def lines(*rows: str) -> str:
    return "".join(f"{row}\n" for row in rows)


def as_json(value: Any) -> str:
    return json.dumps(value)


def as_json_lines(*rows: Any) -> str:
    return lines(*map(json.dumps, rows))


# protocol -> the files in their published form, and the clips: id -> video, start, end, split, captions
WHOLE = (None, None)
EPIC = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,verb_class,all_noun_classes"
COOKING = as_json(
    {
        "database": {
            "abc": {
                "subset": "validation",
                "annotations": [
                    {"segment": [1, 9], "id": 0, "sentence": "chop"},
                    {"segment": [1, 9], "id": 1, "sentence": "slice"},
                    {"segment": [9, 12], "id": 2, "sentence": "stir"},
                ],
            },
            "def": {"subset": "training", "annotations": [{"segment": [0, 3], "id": 0, "sentence": "fry"}]},
        }
    }
)
SAMPLES: dict[str, tuple[dict[str, str], dict[str, tuple]]] = {
    "vatex:hgr": (
        {
            "train_list.txt": lines("aa_000001_000011", "bb_000000_000010"),
            "val_list.txt": lines("cc_000002_000012"),
            "test_list.txt": "dd_000003_000013",  # some lists have no line break at the end
            "vatex_training_v1.0.json": as_json(
                [{"videoID": "aa_000001_000011", "enCap": ["one", "two"], "chCap": ["x"]}]
            ),
            "vatex_validation_v1.0.json": as_json([{"videoID": "dd_000003_000013", "enCap": ["four"]}]),
        },
        {
            "aa_000001_000011": ("aa_000001_000011", *WHOLE, "train", ("one", "two")),
            "bb_000000_000010": ("bb_000000_000010", *WHOLE, "train", ()),
            "cc_000002_000012": ("cc_000002_000012", *WHOLE, "val", ()),
            "dd_000003_000013": ("dd_000003_000013", *WHOLE, "test", ("four",)),
        },
    ),
    "vatex:official": (
        {
            "vatex_training_v1.0.json": as_json([{"videoID": "a_0_10", "enCap": ["one"]}]),
            "vatex_validation_v1.0.json": as_json([{"videoID": "b_0_10", "enCap": ["two"]}]),
            "vatex_public_test_english_v1.1.json": as_json([{"videoID": "c_0_10", "enCap": ["three"]}]),
        },
        {
            "a_0_10": ("a_0_10", *WHOLE, "train", ("one",)),
            "b_0_10": ("b_0_10", *WHOLE, "val", ("two",)),
            "c_0_10": ("c_0_10", *WHOLE, "test", ("three",)),
        },
    ),
    "msvd:standard": (
        {
            "train_list.txt": lines("-4ws_5_15"),
            "val_list.txt": lines("b_1_2"),
            "test_list.txt": lines("c_3_4"),
            "captions_msvd.json": as_json({"-4ws_5_15": ["a squirrel eats", "a chipmunk"], "c_3_4": ["a cat"]}),
        },
        {
            "-4ws_5_15": ("-4ws_5_15", *WHOLE, "train", ("a squirrel eats", "a chipmunk")),
            "b_1_2": ("b_1_2", *WHOLE, "val", ()),
            "c_3_4": ("c_3_4", *WHOLE, "test", ("a cat",)),
        },
    ),
    "lsmdc:public-1000": (
        {
            "LSMDC16_annos_training.csv": lines(
                '0001_X_00.00.51.926-00.00.54.129\t1\t2\t1\t2\tSOMEONE, "smiles".',
                "0001_X_00.00.51.926-00.00.54.129\t2\t3\t2\t3\tShe turns.",
            ),
            "LSMDC16_annos_val.csv": lines("0002_Y_00.00.01.000-00.00.02.000\t1\t2\t1\t2\tA car."),
            "LSMDC16_challenge_1000_publictect.csv": "0003_Z_00.00.01.000-00.00.02.000\t1\t2\t1\t2\tA door.\r\n",
        },
        {
            "0001_X_00.00.51.926-00.00.54.129": (
                "0001_X_00.00.51.926-00.00.54.129",
                *WHOLE,
                "train",
                ('SOMEONE, "smiles".', "She turns."),
            ),
            "0002_Y_00.00.01.000-00.00.02.000": ("0002_Y_00.00.01.000-00.00.02.000", *WHOLE, "val", ("A car.",)),
            "0003_Z_00.00.01.000-00.00.02.000": ("0003_Z_00.00.01.000-00.00.02.000", *WHOLE, "test", ("A door.",)),
        },
    ),
    "didemo:paragraphs": (
        {
            "train_list.txt": lines("1@N00_2_3.mov"),
            "val_list.txt": lines("4@N00_5_6."),
            "test_list.txt": lines("7@N00_8_9.mp4"),
            "test_data.json": as_json(
                [
                    {"video": "7@N00_8_9.mp4", "description": "last. ", "times": [[4, 5], [4, 4], [4, 4]]},
                    {"video": "7@N00_8_9.mov", "description": "first.", "times": [[0, 0], [0, 1]]},
                    {"video": "7@N00_8_9.mp4", "description": "then.", "times": [[0, 2], [0, 0]]},
                ]
            ),
        },
        {
            "1@N00_2_3": ("1@N00_2_3", *WHOLE, "train", ()),
            "4@N00_5_6": ("4@N00_5_6", *WHOLE, "val", ()),
            "7@N00_8_9": ("7@N00_8_9", *WHOLE, "test", ("first. then. last.",)),
        },
    ),
    "activitynet:val_1-paragraphs": (
        {
            "train.json": as_json({"v_a": {"duration": 9.5, "timestamps": [[0, 2.5]], "sentences": ["One."]}}),
            "val_1.json": as_json(
                {"v_b": {"duration": 9, "timestamps": [[3, 9], [0.28, 4]], "sentences": [" Then two.", "First. "]}}
            ),
        },
        {
            "v_a": ("v_a", *WHOLE, "train", ("One.",)),
            "v_b": ("v_b", *WHOLE, "test", ("First. Then two.",)),
        },
    ),
    "activitynet:val_2-clips": (
        {
            "train.json": as_json({"v_a": {"duration": 9.5, "timestamps": [[0, 2.5]], "sentences": ["One."]}}),
            "val_2.json": as_json(
                {"v_b": {"duration": 9, "timestamps": [[3, 9], [3, 9.0]], "sentences": [" Two.", "Three."]}}
            ),
        },
        {
            "v_a_0.0_2.5": ("v_a", 0, 2.5, "train", ("One.",)),
            "v_b_3.0_9.0": ("v_b", 3, 9, "test", ("Two.",)),
            "v_b_3.0_9.0_2": ("v_b", 3, 9, "test", ("Three.",)),
        },
    ),
    "tgif:official": (
        {
            "train.txt": lines("https://31.media.tumblr.com/0011/tumblr_a_500.gif"),
            "val.txt": lines("https://31.media.tumblr.com/0012/tumblr_b_400.gif"),
            "test.txt": lines("https://31.media.tumblr.com/0013/tumblr_c_250.gif"),
            "tgif-v1.0.tsv": lines(
                "https://38.media.tumblr.com/9/tumblr_a_500.gif\ta man is glaring",
                "https://31.media.tumblr.com/0013/tumblr_c_250.gif\ta cat",
                "https://31.media.tumblr.com/0013/tumblr_c_250.gif\ttwo cats",
            ),
        },
        {
            "tumblr_a_500": ("tumblr_a_500", *WHOLE, "train", ("a man is glaring",)),
            "tumblr_b_400": ("tumblr_b_400", *WHOLE, "val", ()),
            "tumblr_c_250": ("tumblr_c_250", *WHOLE, "test", ("a cat", "two cats")),
        },
    ),
    "tgif:chen": (
        {
            "chen_train.txt": lines("tumblr_a_500", "tumblr_b_400.gif"),
            "chen_val.txt": lines("tumblr_c_250#0 a cat", "tumblr_c_250#1 two cats"),
            "chen_test.txt": lines("https://x/y/tumblr_d_1.gif"),
        },
        {
            "tumblr_a_500": ("tumblr_a_500", *WHOLE, "train", ()),
            "tumblr_b_400": ("tumblr_b_400", *WHOLE, "train", ()),
            "tumblr_c_250": ("tumblr_c_250", *WHOLE, "val", ()),
            "tumblr_d_1": ("tumblr_d_1", *WHOLE, "test", ()),
        },
    ),
    "epic_kitchens:mir": (
        {
            "EPIC_100_retrieval_train.csv": lines(EPIC, "P01_01_0,P01,P01_01,00:01:00.14,00:01:03.37,open door,3,[3]"),
            "EPIC_100_retrieval_test.csv": lines(
                EPIC, 'P01_11_0,P01,P01_11,01:00:00.00,01:00:01.89,"take plate, cup",0,"[2, 13]"'
            ),
        },
        {
            "P01_01_0": ("P01_01", 60.14, 63.37, "train", ("open door",)),
            "P01_11_0": ("P01_11", 3600.0, 3601.89, "test", ("take plate, cup",)),
        },
    ),
    "ssv2:template": (
        {
            "ssv2_ret_template_train.json": as_json([{"video": "78687.webm", "caption": "Holding [something]"}]),
            "ssv2_ret_template_val_small.json": as_json(
                [{"video": ["62211.webm", "63095.webm"], "caption": "Spinning [something]"}]
            ),
        },
        {
            "78687": ("78687", *WHOLE, "train", ("Holding [something]",)),
            "62211": ("62211", *WHOLE, "test", ("Spinning [something]",)),
            "63095": ("63095", *WHOLE, "test", ("Spinning [something]",)),
        },
    ),
    "vidvrd:relations": (
        {
            "captions.jsonl": as_json_lines(
                {"row": 1, "video": "video1", "split": "test", "captions": ["dog bite frisbee"]},
                {"row": 0, "video": "video0", "split": "train", "captions": ["dog stand behind frisbee"]},
            )
        },
        {
            "video0": ("video0", *WHOLE, "train", ("dog stand behind frisbee",)),
            "video1": ("video1", *WHOLE, "test", ("dog bite frisbee",)),
        },
    ),
    "videomem:titles": (
        {
            "captions.tsv": lines(
                "row\tvideo\tsplit\tcaption_slug",
                "1\tvideo7.webm\ttest\tslow-motion-tennis",
                "0\tvideo10.webm\tdev\tcouple-relaxing",
            )
        },
        {
            "video10.webm": ("video10.webm", *WHOLE, "val", ("couple relaxing",)),
            "video7.webm": ("video7.webm", *WHOLE, "test", ("slow motion tennis",)),
        },
    ),
    "msrvtt:7k-hybrid": (
        {
            "MSRVTT_train.7k.csv": lines("video_id", "video0"),
            "msrvtt10kyuval.caption.txt": lines("video5#0 a man sings"),
            "MSRVTT_JSFUSION_test.csv": lines("key,vid_key,video_id,sentence", "ret0,msr7020,video7020,a fondant baby"),
        },
        {
            "video0": ("video0", *WHOLE, "train", ()),
            "video5": ("video5", *WHOLE, "val", ("a man sings",)),
            "video7020": ("video7020", *WHOLE, "test", ("a fondant baby",)),
        },
    ),
    "msrvtt:mteb": (
        {"MSRVTT_mteb_test.csv": lines("video_id,sentence", "video7020,a fondant baby")},
        {"video7020": ("video7020", *WHOLE, "test", ("a fondant baby",))},
    ),
    "youcook2:howto100m": (
        {
            "youcookii_annotations_trainval.json": COOKING,
            "validation_youcook.csv": lines(
                "end,start,task,text,video_id",
                "9,1,226,chop,abc",
                "9,1,226,slice,abc",
                "9,1,226,cut,abc",
                "3,0,226,fry,def",
                "3,0,226,roast,def",
            ),
        },
        {
            "abc_0": ("abc", 1, 9, "test", ("chop",)),
            "abc_1": ("abc", 1, 9, "test", ("slice",)),
            "abc_1_9": ("abc", 1, 9, "test", ("cut",)),
            "def_0_3": ("def", 0, 3, "test", ("fry",)),
            "def_0_3_2": ("def", 0, 3, "test", ("roast",)),
        },
    ),
    "youcook2:mteb": (
        {"youcookii_annotations_trainval.json": COOKING, "youcook2_mteb.txt": lines("abc_2", "abc_0")},
        {"abc_2": ("abc", 9, 12, "test", ("stir",)), "abc_0": ("abc", 1, 9, "test", ("chop",))},
    ),
}


def sample(protocol: str, folder: Path) -> Path:
    for name, content in SAMPLES[protocol][0].items():
        (folder / name).write_text(content, newline="")
    return folder


def scan(protocol: str, folder: Path) -> list[Clip | Problem]:
    entry, chosen = named(protocol)
    return entry.scan(folder, chosen, val=0)


@pytest.mark.parametrize("protocol", SAMPLES)
def test_the_published_form_of_a_data_set_becomes_clips(protocol: str, tmp_path: Path) -> None:
    clips = scan(protocol, sample(protocol, tmp_path))
    by_id = {clip.clip_id: (clip.video, clip.start, clip.end, clip.split, clip.captions) for clip in clips}
    assert by_id == SAMPLES[protocol][1]
    assert len(clips) == len(by_id)
    assert {clip.extras["protocol"] for clip in clips} == {protocol}


DAMAGE = {
    ".json": ("", "{", "[]", "{}", "null", "[5]", '[{"video": 5}]', '{"a": 5}', '{"a": {"timestamps": 5}}', "\0"),
    ".jsonl": ("", "[]", "{}", '{"video": 5}', '{"video": "a", "row": -1}', '{"video": "a", "row": 1}'),
    ".csv": ("", "a,b\n1,2\n", "\0", '"', "x\n"),
    ".tsv": (
        "",
        "a\n",
        "a\tb\tc\n",
        "row\tvideo\tsplit\tcaption_slug\n",
        "row\tvideo\tsplit\tcaption_slug\nx\ty\tdev\tz\n",
    ),
    ".txt": ("", " \n\n"),
}


@pytest.mark.parametrize("protocol", SAMPLES)
def test_a_damaged_file_is_a_one_line_error_that_names_it(protocol: str, tmp_path: Path) -> None:
    for name, content in SAMPLES[protocol][0].items():
        head = (
            content.splitlines(keepends=True)[0] if name.endswith(".csv") and not protocol.startswith("lsmdc") else ""
        )
        for damage in (*DAMAGE[Path(name).suffix], head):
            sample(protocol, tmp_path)
            (tmp_path / name).write_text(damage)
            with pytest.raises(ManifestError) as raised:
                scan(protocol, tmp_path)
            assert str(tmp_path / name) in str(raised.value), (name, damage)
            assert str(raised.value).isprintable()


@pytest.mark.parametrize("protocol", SAMPLES)
def test_a_missing_file_is_named_with_its_address(protocol: str, tmp_path: Path) -> None:
    entry, chosen = named(protocol)
    for file in entry.protocols[chosen].files:
        folder = sample(protocol, tmp_path)
        (folder / file.name).unlink()
        with pytest.raises(ManifestError, match=re.escape(f"{folder / file.name} is missing")) as raised:
            scan(protocol, folder)
        assert file.where in str(raised.value)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_state_the_origin_of_their_files_and_numbers(name: str) -> None:
    entry, chosen = named(name)
    protocol = entry.protocols[chosen]
    assert DATASETS[entry.name] is entry
    assert protocol.help
    assert entry.videos.endswith(".")
    assert re.match(r"\S.* \(.+ \d{4}\)", entry.title), "its name, and its paper with the year"
    assert protocol.files
    assert len({file.name for file in (*protocol.files, *protocol.optional)}) == len(protocol.files + protocol.optional)
    for file in (*protocol.files, *protocol.optional):
        assert re.fullmatch("|[0-9a-f]{64}", file.sha256)
        assert file.url.startswith(("https://", "http://"))
    assert protocol.source or protocol.known != "read", "where was it read?"
    assert "test" in protocol.clips
    assert set(protocol.captions) <= set(protocol.clips)


@functools.cache
def real_clips(name: str, data: Path) -> list[Clip]:
    """Return the clips of a protocol from the real files; skip the test without them."""
    entry, chosen = named(name)
    folder = real_folder(entry.name, data)
    if not all((folder / file.name).is_file() for file in entry.protocols[chosen].files):
        pytest.skip(f"the files of {name} are not in {folder}")
    return [item for item in scan(name, folder) if isinstance(item, Clip)]


def real_folder(name: str, data: Path) -> Path:
    others = {"vidvrd": "vidvrd", "videomem": "videomem_coco80"}
    return data / "features" / others[name] if name in others else data / "annotations" / name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.endswith("-clips") else ()) for name in PROTOCOLS]
)
def test_the_counts_of_a_protocol_match_its_files(name: str, real_data: Path) -> None:
    clips = real_clips(name, real_data)
    entry, chosen = named(name)
    protocol = entry.protocols[chosen]
    assert protocol.known == "counted"
    assert Counter(clip.split for clip in clips) == protocol.clips
    assert len({clip.clip_id for clip in clips}) == len(clips)
    captions = Counter()
    for clip in clips:
        captions[clip.split] += len(clip.captions)
    for split, count in protocol.captions.items():
        assert captions[split] in (count, 0), "0: the captions of a split are in a file that is not there"


@pytest.mark.parametrize("name", sorted({name.partition(":")[0] for name in SAMPLES}))
def test_digests_are_of_the_real_files(name: str, real_data: Path) -> None:
    folder = real_folder(name, real_data)
    known = {file for each in DATASETS[name].protocols.values() for file in (*each.files, *each.optional)}
    real = [file for file in known if file.sha256 and (folder / file.name).is_file()]
    if not real:
        pytest.skip(f"no file of {name} with a digest is in {folder}")
    for file in real:
        assert file_sha256(folder / file.name, ManifestError) == file.sha256, file.name


def test_all_clips_of_howto100ms_list_have_official_ids(real_data: Path) -> None:
    official = {clip.clip_id: clip for clip in real_clips("youcook2:official", real_data)}
    listed = real_clips("youcook2:howto100m", real_data)
    assert sum(clip.clip_id in official for clip in listed) == 3_350
    for clip in listed:
        same = official[clip.clip_id]
        assert (clip.video, clip.start, clip.end) == (same.video, same.start, same.end)
    # One pair of times is listed twice: each sentence has the id of the official step with this sentence.
    assert {clip.captions == official[clip.clip_id].captions for clip in listed if clip.video == "oJZUxU9szWA"} == {
        True
    }


def test_activitynets_two_validations_share_the_ids_of_their_videos(real_data: Path) -> None:
    first, second = (
        {clip.clip_id: clip for clip in real_clips(f"activitynet:{test}-paragraphs", real_data) if clip.split == "test"}
        for test in ("val_1", "val_2")
    )
    assert set(second) < set(first)
    assert sum(first[name].captions != second[name].captions for name in second) > 4_800


def test_the_validation_clips_of_mmt_match_its_program(real_data: Path, tmp_path: Path) -> None:
    split = {clip.clip_id: clip.split for clip in real_clips("msrvtt:1k-A-mmt", real_data)}
    # The order of train_list_jsfusion.txt after numpy.random.RandomState(0).shuffle.
    assert [name for name, which in split.items() if which == "val"][:3] == ["video4424", "video1726", "video8359"]
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\n")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("video_id,sentence\nvideo1,x\n")
    with pytest.raises(ManifestError, match=r"MSRVTT_train\.9k\.csv has 1 video,"):
        scan("msrvtt:1k-A-mmt", tmp_path)


def test_one_file_can_stand_for_its_folder(tmp_path: Path) -> None:
    folder = sample("youcook2:howto100m", tmp_path)
    assert len(dataset("youcook2").scan(folder / "validation_youcook.csv")) == 5
    (folder / "validation_youcook.csv").rename(folder / "mine.csv")
    assert len(dataset("youcook2").scan(folder / "mine.csv")) == 5
    (folder / "youcookii_annotations_trainval.json").unlink()
    with pytest.raises(ManifestError, match=r"youcookii_annotations_trainval\.json is missing; it is published at"):
        dataset("youcook2").scan(folder / "mine.csv")


def test_two_files_with_the_same_name_are_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sample("msvd:standard", tmp_path / name)
    for name in ("a/val_list.txt", "b/test_list.txt", "a/captions_msvd.json"):
        (tmp_path / name).unlink()
    with pytest.raises(
        ManifestError, match=r"a/train_list\.txt and .*b/train_list\.txt could be train_list\.txt: give"
    ):
        scan("msvd:standard", tmp_path)
    (tmp_path / "a" / "train_list.txt").unlink()
    assert len(scan("msvd:standard", tmp_path)) == 3  # one per split is left


@pytest.mark.parametrize(("protocol", "name"), [("tgif:chen", "chen_val.txt"), ("vatex:hgr", "test_list.txt")])
def test_an_invalid_line_of_a_list_is_an_error(protocol: str, name: str, tmp_path: Path) -> None:
    for damage in (b"a\0b\n", b"\xff\xfe\n"):
        (sample(protocol, tmp_path) / name).write_bytes(damage)
        with pytest.raises(ManifestError, match=re.escape(str(tmp_path / name))):
            scan(protocol, tmp_path)


def test_optional_files_are_fetched_if_their_digest_is_known(tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "list.txt").write_text("a\n")
    handler = functools.partial(Quiet, directory=tmp_path / "there")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/list.txt"
        digest = file_sha256(tmp_path / "there" / "list.txt", ManifestError)
        required, known = (AnnotationFile(name=name, url=url, sha256=digest) for name in ("list.txt", "more.txt"))
        gone = AnnotationFile(name="gone.txt", url=f"{url}.old", sha256=digest)
        unknown = AnnotationFile(name="captions.json", url=url)
        protocol = Protocol(help="", clips={}, files=(required,), optional=(gone, known, unknown))
        entry = Dataset(name="x", title="", takes="", build=lambda *_: [], protocols={"only": protocol})
        said: list[str] = []
        entry.fetch(tmp_path / "here", None, said.append)
        first, second, cannot, third = said
        entry.fetch(tmp_path / "here", None, said.append)
        server.shutdown()
    assert (first, third) == (f"fetching list.txt from {url}", f"fetching more.txt from {url}")
    assert second == f"fetching gone.txt from {url}.old"
    assert cannot.startswith("cannot fetch gone.txt: 404")
    assert said[4:] == [second, cannot]  # existing files are not downloaded again
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["list.txt", "more.txt"]


def test_a_list_with_unknown_clips_is_refused(tmp_path: Path) -> None:
    folder = sample("youcook2:mteb", tmp_path)
    for name in ("abc_7", "def_0"):  # an unknown step; a training step
        (folder / "youcook2_mteb.txt").write_text(f"abc_0\n{name}\n")
        with pytest.raises(
            ManifestError, match=rf"youcook2_mteb\.txt: '{name}' is not a validation clip; ids look like 'abc_0'"
        ):
            scan("youcook2:mteb", folder)


def test_extras_of_epic_kitchens_have_the_relevance_classes(tmp_path: Path) -> None:
    train, test = scan("epic_kitchens:mir", sample("epic_kitchens:mir", tmp_path))
    assert (train.extras["verb_class"], train.extras["noun_classes"]) == (3, [3])
    assert (test.extras["verb_class"], test.extras["noun_classes"]) == (0, [2, 13])


def test_sentences_with_invalid_times_are_skipped_and_reported(tmp_path: Path) -> None:
    folder = sample("activitynet:val_2-clips", tmp_path)
    said = {"timestamps": [[61.29, 60.71], [1, 2]], "sentences": ["back", "on"]}
    (folder / "train.json").write_text(as_json({"v_a": said}))
    *clips, problem = scan("activitynet:val_2-clips", folder)
    assert [clip.clip_id for clip in clips if clip.split == "train"] == ["v_a_1.0_2.0"]
    assert str(problem) == "train.json: v_a: a sentence of [61.29, 60.71), which does not end after it starts"


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


def test_pickled_captions_of_msvd_cannot_execute_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = sample("msvd:standard", tmp_path)
    (folder / "captions_msvd.json").unlink()
    said = {"c_3_4": [["a", "cat"], ["two", "cats"]]}
    for version in (0, 2, 4):
        (folder / "raw-captions.pkl").write_bytes(pickle.dumps(said, protocol=version))
        assert [clip.captions for clip in scan("msvd:standard", folder)] == [(), (), ("a cat", "two cats")]
    for damage in (pickle.dumps({"c_3_4": Evil()}), pickle.dumps(5), b"", pickle.dumps(said)[:-9]):
        (folder / "raw-captions.pkl").write_bytes(damage)
        with pytest.raises(ManifestError, match=r"raw-captions\.pkl is not laid out as expected"):
            scan("msvd:standard", folder)
    assert not (tmp_path / "executed").exists()


def test_a_built_manifest_names_the_rows_of_imported_features(tmp_path: Path) -> None:
    folder, manifest = sample("videomem:titles", tmp_path), tmp_path / "m.jsonl"
    built = amex("manifest", "build", "videomem", "--annotations", folder / "captions.tsv", "--out", manifest)
    assert built.exit_code == 0, built.output
    np.save(tmp_path / "coco80.npy", np.array([[0.0], [1.0]], np.float32))
    arguments = ("--stream", "coco80", "--captions", manifest, "--store", tmp_path / "s.zarr")
    assert amex("features", "import", tmp_path / "coco80.npy", *arguments).exit_code == 0
    stream = open_store(tmp_path / "s.zarr")["coco80"]
    assert {clip.clip_id: stream[clip.clip_id].values.item() for clip in read_manifest(manifest)} == {
        "video10.webm": 0.0,
        "video7.webm": 1.0,
    }


def protocol_row(name: str, protocol: Protocol) -> str:
    splits = [
        f"{protocol.clips[split]:,}" + (f" ({said:,})" if (said := protocol.captions.get(split)) else "")
        if split in protocol.clips
        else ""
        for split in ("train", "val", "test")
    ]
    mark = ": " if protocol.known == "read" else "; "
    source = f"{mark}{protocol.source}" if protocol.source else ""
    return f"| `{name}` | {' | '.join(splits)} | {protocol.known}{source} | {protocol.help} |"


def with_table(page: str, head: str, rows: list[str]) -> str:
    """Return the page with these rows instead of the rows below the header of a table."""
    before, after = page.split(f"{head}\n", 1)
    rule, rest = after.split("\n", 1)
    _, blank, rest = ("\n" + rest).partition("\n\n")
    return "\n".join([before + head, rule, *rows]) + blank + rest


def test_the_documentation_has_all_protocols_and_where_videos_are() -> None:
    """If the code has changed, AMEX_WRITE_DOCS=1 rewrites the tables."""
    protocols = [protocol_row(name, named(name)[0].protocols[named(name)[1]]) for name in PROTOCOLS]
    videos = [f"| `{name}` | {entry.videos} |" for name, entry in DATASETS.items() if entry.protocols]
    page = with_table(PAGE.read_text(), "| protocol | train | val | test | known | what it is |", protocols)
    page = with_table(page, "| data set | where people get the videos |", videos)
    if os.environ.get("AMEX_WRITE_DOCS"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page
