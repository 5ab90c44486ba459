"""The search page gives away nothing but the clips of its store, and what it answers is what is there."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from conftest import amex
from served import CLIPS, OBJECTS, WICKED, make_store, serving, write
from tiny import TINY, tiny_store
from videos import encode, read_number

from amex.cli.page import Library, VideoFiles, pictures
from amex.cli.serve import address, names_of, shown_videos
from amex.errors import AmexError
from amex.features import ClipRows, ClipSource, create_store, open_store, write_sources
from amex.manifests import Clip

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def page(store: Path) -> Iterator[httpx.Client]:
    with serving(store, store.parent / "videos") as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def clips(page: httpx.Client, **asked: object) -> list[str]:
    answer = page.get("/api/clips", params=asked)
    assert answer.status_code == 200, answer.text
    return [hit["clip"] for hit in answer.json()["hits"]]


def test_an_empty_query_lists_the_clips_and_a_query_ranks_them(page: httpx.Client) -> None:
    assert clips(page) == [clip.clip_id for clip in CLIPS]
    assert clips(page, q="a dog dreams", k=2) == ["cat", "dog"]
    (first, *_) = page.get("/api/clips", params={"q": "wok"}).json()["hits"]
    assert first == {
        "clip": "wok", "caption": "someone fries in a wok", "split": "test", "start": 0.2, "end": None,
        "streams": ["motion"], "boxes": [], "rank": 1, "score": 1.0, "weak": False,
    }  # fmt: skip


def test_filters_are_applied_before_results_are_counted(page: httpx.Client) -> None:
    assert clips(page, split="test", k=2) == ["cat", "wok"]
    assert clips(page, stream="objects") == ["dog"]
    assert clips(page, q="wok", stream="objects", k=1) == ["dog"]  # the only one, and the worst of all
    assert page.get("/api/clips", params={"q": "dog", "split": "test", "k": 1}).json()["more"] is True
    assert page.get("/api/clips", params={"q": "dog", "split": "test", "k": 2}).json()["more"] is False
    assert "there is motion, objects" in page.get("/api/clips", params={"stream": "nope"}).json()["error"]
    assert len(clips(page, k=10**9)) == len(CLIPS)
    assert page.get("/api/clips", params={"k": "x"}).status_code == 422


def test_what_is_searched_with_is_said(page: httpx.Client) -> None:
    about = page.get("/api/about").json()
    assert about == {
        "description": "words in common <b>", "clips": "6 of 6 clips", "streams": ["motion", "objects"],
        "splits": ["test", "train"], "captions": True, "no_pictures": "",
    }  # fmt: skip


def test_texts_for_a_clip_and_its_boxes(page: httpx.Client) -> None:
    fitting = page.get("/api/captions", params={"clip": "cat", "k": 2}).json()["captions"]
    assert [text["caption"] for text in fitting] == ["a cat sleeps", "a cat dreams of a dog"]
    frames = page.get("/api/boxes", params={"clip": "dog", "stream": "objects"}).json()["frames"]
    assert [round(frame["from"], 3) for frame in frames] == [0.5, 0.7, 0.9, 1.1, 1.3]
    assert [frame["until"] for frame in frames[:-1]] == [frame["from"] for frame in frames[1:]]
    best, other = frames[0]["boxes"]  # the higher score comes first
    assert (best["box"], best["label"], best["score"]) == ([160, 120, 320, 240], WICKED, 0.75)
    assert (other["label"], frames[0]["size"]) == ("ball", [320, 240])
    for asked in ({"clip": "cat", "stream": "objects"}, {"clip": "dog", "stream": "motion"}, {"clip": "dog"}):
        assert page.get("/api/boxes", params=asked).status_code == 422


def test_a_clip_without_objects_has_no_boxes_and_a_class_without_a_name_its_number(tmp_path: Path) -> None:
    shapes = {"values": (2, 4), "boxes": (2, 4), "scores": (2,), "labels": (2,), "counts": (), "frame_size": (2,)}
    of = {"labels": np.int32, "counts": np.int32, "frame_size": np.int32}

    def drawn(rows: int) -> dict[str, np.ndarray]:
        made = {name: np.ones((rows, *shape), of.get(name, np.float32)) for name, shape in shapes.items()}
        return made | {"times": np.tile([0.0, 1.0], (rows, 1))}

    source = ClipSource(video="a.mp4")
    strange = drawn(1) | {"labels": np.array([[-1, 9]], np.int32), "counts": np.array([2], np.int32)}
    found = [("none", drawn(0)), ("strange", strange)]
    create_store(tmp_path / "s.zarr")
    write(tmp_path / "s.zarr", "objects", OBJECTS, [ClipRows(clip_id=n, arrays=a, source=source) for n, a in found])
    clips = [Clip(clip_id=name, video="a.mp4", captions=("x",)) for name, _ in found]
    with serving(tmp_path / "s.zarr", None, clips) as url, httpx.Client(base_url=url, timeout=60) as page:
        assert page.get("/api/boxes?clip=none&stream=objects").json() == {"frames": []}
        (frame,) = page.get("/api/boxes?clip=strange&stream=objects").json()["frames"]
        assert [box["label"] for box in frame["boxes"]] == ["class -1", "class 9"]


def test_an_error_of_the_searcher_is_text(page: httpx.Client, capfd: pytest.CaptureFixture[str]) -> None:
    answer = page.get("/api/clips", params={"q": "fail"})
    assert (answer.status_code, answer.json()["error"]) == (422, f"no encoder for {WICKED}")
    crashed = httpx.get(f"{page.base_url}/api/clips", params={"q": "crash"})
    assert (crashed.status_code, crashed.json()["error"]) == (500, "RuntimeError: out of <b>cheese</b>")
    assert crashed.headers["X-Content-Type-Options"] == "nosniff"
    assert "RuntimeError: out of" in capfd.readouterr().err
    assert "longer than 2,000" in page.get("/api/clips", params={"q": "x" * 2001}).json()["error"]


def test_a_video_is_sent_in_ranges_and_not_again(page: httpx.Client, store: Path) -> None:
    data = (store.parent / "videos" / "a.mp4").read_bytes()
    complete = page.get("/video?clip=dog")
    assert (complete.status_code, complete.content, complete.headers["content-type"]) == (200, data, "video/mp4")
    part = page.get("/video?clip=dog", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, data[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(data)}"
    assert page.get("/video?clip=dog", headers={"Range": "bytes=-5"}).content == data[-5:]
    assert page.get("/video?clip=dog", headers={"Range": f"bytes={len(data)}-"}).status_code == 416
    head = page.head("/video?clip=dog")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(data)))
    for name, mark in (("If-None-Match", "etag"), ("If-Modified-Since", "last-modified")):
        again = page.get("/video?clip=dog", headers={name: complete.headers[mark]})
        assert (again.status_code, again.content) == (304, b"")
    assert page.post("/video?clip=dog").status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/video?clip=../s.zarr/zarr.json", "/video?clip=/etc/passwd", "/video?clip=a.mp4", "/video?clip=", "/video",
        "/still?clip=..", "/copy?clip=nope", "/api/boxes?clip=nope&stream=objects", "/api/captions?clip=nope",
        "/static/", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/videos/a.mp4", "/nope",
    ],
)  # fmt: skip
def test_only_clips_and_the_page_are_there(page: httpx.Client, path: str) -> None:
    answer = page.get(path)
    assert answer.status_code == 404
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "There is no such page" in answer.text or "error" in answer.json()


@pytest.mark.parametrize("video", ["/etc/hostname.mp4", "../out.mp4", "a/../../out.mp4", "link.mp4", "notes.html", "."])
def test_a_strangers_manifest_gives_away_no_file(store: Path, tmp_path: Path, video: str) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (tmp_path / "out.mp4").write_text("secret")
    (videos / "link.mp4").symlink_to(tmp_path / "out.mp4")
    (videos / "notes.html").write_text("<script>secret</script>")
    files = VideoFiles(videos, open_store(store))
    with pytest.raises(AmexError, match=re.escape(video)):
        files.path(Clip(clip_id="unknown to the store", video=video))


def test_a_strangers_store_gives_away_no_file_and_a_folder_of_links_inside_works(store: Path, tmp_path: Path) -> None:
    """A store says which file it saw of a clip, and that counts, but only below the folder."""
    (tmp_path / "videos" / "inside").mkdir(parents=True)
    encode(tmp_path / "videos" / "inside" / "x.mp4", frames=4)
    (tmp_path / "videos" / "a.mp4").symlink_to("inside/x.mp4")
    (tmp_path / "link").symlink_to("videos")
    dog = next(clip for clip in CLIPS if clip.clip_id == "dog")
    files = VideoFiles(tmp_path / "link", open_store(store))
    assert files.path(dog) == tmp_path / "videos" / "inside" / "x.mp4"
    (tmp_path / "videos" / "a.mp4").unlink()
    (tmp_path / "videos" / "a.mp4").symlink_to("/etc/hostname")
    with pytest.raises(AmexError, match="outside"):
        files.path(dog)
    with serving(store, tmp_path / "videos") as url:
        for route in ("video", "still", "copy"):
            answer = httpx.get(f"{url}/{route}?clip=dog")
            assert answer.status_code == 422
            assert "is a link to /etc/hostname" in answer.json()["error"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:9", 200), ("LOCALHOST", 200), ("192.168.0.7:80", 200),
        ("evil.example", 421), ("localhost.evil.example", 421), ("127.0.0.1.evil.example:8000", 421), ("", 421),
        ("localhost@evil.example", 421), ("[", 421),
    ],
)  # fmt: skip
def test_a_site_that_points_its_name_here_is_told_nothing(page: httpx.Client, host: str, status: int) -> None:
    answer = page.get("/api/about", headers={"Host": host})
    assert answer.status_code == status
    assert ("description" in answer.text) == (status == 200)


def test_a_server_for_others_goes_by_the_name_of_its_machine() -> None:
    assert names_of("127.0.0.1") == ("localhost", "127.0.0.1")
    assert socket.gethostname() in names_of("0.0.0.0")
    assert address("0.0.0.0", 80) == f"http://{socket.gethostname()}:80/"
    assert address("::1", 80) == "http://[::1]:80/"


def test_every_answer_says_that_nothing_else_may_run(page: httpx.Client) -> None:
    for path in ("/", "/static/page.js", "/api/about", "/video?clip=dog", "/nope", "/api/nope", "/video?clip=nope"):
        headers = page.get(path).headers
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    folder = ROOT / "cli" / "page" / "static"
    for file in folder.iterdir():
        assert not re.search(r"(https?:)?//(?!www\.w3\.org/2000/svg)[\w.-]+\.\w+/", file.read_text()), file
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", file.read_text()), file


def test_pictures_of_videos_that_are_broken_or_gone_cost_only_themselves(page: httpx.Client) -> None:
    picture = page.get("/still?clip=dog")
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content.startswith(b"\xff\xd8")
    assert "not a video file" in page.get("/still?clip=broken").json()["error"]
    assert "no video 'e.mp4'" in page.get("/still", params={"clip": CLIPS[4].clip_id}).json()["error"]
    assert page.get("/still", params={"clip": WICKED}).status_code == 200


def test_many_requests_at_once_are_answered(page: httpx.Client) -> None:
    paths = [
        "/still?clip=dog",
        "/still?clip=cat",
        "/api/clips?q=a+dog",
        "/video?clip=dog",
        "/api/captions?clip=dog",
    ] * 6
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(page.get, paths))
    assert {answer.status_code for answer in answers} == {200}  # the searcher refuses to be asked twice at once


def test_a_picture_is_of_the_middle_and_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    video = encode(tmp_path / "v.mp4", frames=20, options={"preset": "ultrafast"})
    with pictures.open_pictures() as made:
        first = made.still(video, None, None)
        assert made.still(video, None, None) is first
        assert made.still(video, 0.0, 0.1) != first
        encode(video, frames=40, first=40)
        assert made.still(video, None, None) != first


def test_a_video_that_browsers_do_not_play_is_copied_frame_for_frame(
    page: httpx.Client, tmp_path: Path, store: Path
) -> None:
    copy = page.get("/api/copy?clip=wok").json()
    assert copy == {"begin": pytest.approx(0.2, abs=0.02), "end": pytest.approx(2.0, abs=0.01), "cut": False}
    sent = page.get("/copy?clip=wok", headers={"Range": "bytes=0-"})
    assert (sent.status_code, sent.headers["content-type"]) == (206, "video/mp4")
    (tmp_path / "copy.mp4").write_bytes(sent.content)
    with av.open(str(tmp_path / "copy.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        frames = [
            (round(frame.time * 30), read_number(frame.to_ndarray(format="rgb24")))
            for frame in container.decode(stream)
        ]
    assert frames == [(i, 6 + i) for i in range(54)]


def test_videos_and_thumbnails_wait_for_no_copies(page: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    make_copy = pictures.Pictures.copy

    def slow(*clip: Any) -> pictures.Copy:
        assert go_on.wait(30)
        return make_copy(*clip)

    monkeypatch.setattr(pictures.Pictures, "copy", slow)
    with ThreadPoolExecutor(8) as threads:
        copies = [threads.submit(page.get, "/api/copy?clip=dog") for _ in range(8)]
        try:
            time.sleep(0.2)  # all of them are under way
            for path in ("/video?clip=dog", "/still?clip=cat"):
                assert page.get(path, timeout=10).status_code == 200
        finally:
            go_on.set()
    assert {copy.result().status_code for copy in copies} == {200}


def test_copies_are_bounded_in_length_and_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "COPY_SECONDS", 0.5)
    monkeypatch.setattr(pictures, "MOST_COPIES", 2)
    video = encode(tmp_path / "v.mp4", frames=20, width=161 * 2, height=61 * 2, options={"preset": "ultrafast"})
    with pictures.open_pictures() as made:
        copies = [made.copy(video, start, None) for start in (0.0, 0.1, 0.2)]
        assert [copy.path.is_file() for copy in copies] == [False, True, True]
        assert [copy.cut for copy in copies] == [True, True, False]
        assert made.copy(video, 0.0, 0.5).cut is False
        with pytest.raises(AmexError, match=r"v\.mp4: the clip begins at 5\.000 s"):
            made.copy(video, 5.0, 6.0)
        (tmp_path / "x.mp4").write_bytes(b"x")
        with pytest.raises(AmexError, match=r"x\.mp4: not a video file"):
            made.copy(tmp_path / "x.mp4", None, None)
        assert len(list(copies[1].path.parent.iterdir())) == 2
    assert not copies[1].path.parent.exists()


def test_without_videos_there_is_the_rest_of_the_page(store: Path) -> None:
    with serving(store, None) as url:
        assert httpx.get(f"{url}/api/about").json()["no_pictures"] == "no pictures: a test"
        assert len(httpx.get(f"{url}/api/clips").json()["hits"]) == len(CLIPS)
        assert "--videos" in httpx.get(f"{url}/still?clip=dog").json()["error"]


def test_the_folder_of_the_videos_is_that_of_the_extraction(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "s.zarr")

    class Searcher:
        store = open_store(tmp_path / "s.zarr")

    assert shown_videos(Searcher, tmp_path) == (tmp_path, "")
    assert shown_videos(Searcher, None)[1].startswith("no pictures: the store does not say")
    write_sources(tmp_path / "s.zarr", videos=tmp_path / "v")
    assert "is gone" in shown_videos(Searcher, None)[1]
    (tmp_path / "v").mkdir()
    assert shown_videos(Searcher, None) == (tmp_path / "v", "")
    with pytest.raises(AmexError, match="is not a folder"):
        shown_videos(Searcher, tmp_path / "w")


def test_an_address_that_is_taken_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = amex("serve", tmp_path, "--port", taken.getsockname()[1])
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert "Address already in use" in line
    assert "--port 0" in line
    assert (
        "cannot listen on http://nowhere.invalid:8000/" in amex("serve", tmp_path, "--host", "nowhere.invalid").output
    )


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_run_is_served_until_it_is_interrupted(tmp_path: Path, number: int) -> None:
    store = tiny_store(tmp_path)
    settings = (word for setting in (*TINY, "train.epochs=1") for word in ("--set", setting))
    arguments = ("--store", store, "--manifest", tmp_path / "m.jsonl")
    trained = amex("train", "global", *settings, *arguments, "--work-dir", tmp_path / "run")
    assert trained.exit_code == 0, trained.output
    command = [sys.executable, "-m", "amex.cli", "serve", str(tmp_path / "run"), "--port", "0"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
    ) as process:
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url), process.stderr.read()
        with httpx.Client(base_url=url, timeout=60) as page:
            found = page.get("/api/clips", params={"q": "a dog chases a cat", "k": 15}).json()["hits"]
            assert [hit["rank"] for hit in found] == list(range(1, 16))
            assert "(global)" in page.get("/api/about").json()["description"]
            assert page.get("/api/captions?clip=train0").json()["captions"]
            begin = time.monotonic()
            process.send_signal(number)
            assert process.wait(30) == 130
            assert time.monotonic() - begin < 10
        stderr = process.stderr.read()
        assert process.stdout.read() == ""
        assert stderr.splitlines()[-1] == "stopped"
        assert not list(temporary.glob("amex-*"))
        assert "Traceback" not in stderr
        assert "no pictures: the store does not say where its videos are" in stderr


def test_the_files_of_the_page_are_part_of_the_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert "amex.cli.page" in config["options"]["packages"].split()
    pattern = config["options.package_data"]["amex.cli.page"]
    files = [path.relative_to(ROOT / "cli" / "page").as_posix() for path in (ROOT / "cli/page/static").iterdir()]
    assert "static/page.html" in files
    assert all(fnmatch(file, pattern) for file in files)


def test_scores_that_are_no_numbers_are_none(store: Path) -> None:
    from served import ByWords

    class Lost(ByWords):
        def _score(self, query: str, clip: Clip) -> float:
            return float("nan")

    assert Library(Lost(open_store(store)), {}).clips("x", 1)["hits"][0]["score"] is None
