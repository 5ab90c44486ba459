"""The page of a run and that of a search stand alone, escape what people wrote, and are what a browser shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import amex, write_lines
from PIL import Image
from videos import encode

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WICKED = "<script>alert('a dog')</script> & a <b>cat</b>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cluster: str) -> Path:
    """A short run on clips with videos and real window features; one caption is HTML."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "videos").mkdir()
    lines = []
    for i in range(12):
        encode(folder / "videos" / f"v{i}.mp4", frames=24)
        split = "train" if i < 6 else "val" if i < 9 else "test"
        captions = [f"a dog number {i}", WICKED if i == 9 else f"the {i}th cat"]
        lines.append({"clip_id": f"v{i}.mp4", "video": f"v{i}.mp4", "split": split, "captions": captions})
    manifest = write_lines(folder / "m.jsonl", *lines)
    store = folder / "s.zarr"
    made = amex(
        "extract", "--manifest", manifest, "--videos", folder / "videos", "--store", store, "--device", "cpu",
        "--stream", "r2plus1d_tiny", "--cluster", cluster,
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    trained = amex(
        "train", "global", "--store", store, "--manifest", manifest, "--work-dir", folder / "w",
        "--set", "train.epochs=3", "--set", "model.text=words", "--set", "model.dim=16", "--set", "data.batch_size=4",
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    return folder / "w"


def page(run: Path) -> Path:
    result = amex("report", run, "--videos", run.parent / "videos")
    assert result.exit_code == 0, result.output
    return run / "report.html"


def test_a_report_stands_alone_and_says_what_a_reader_asks(run: Path) -> None:
    text = page(run).read_text()
    for words in ("Text to video", "Video to text", "R@1", "rsum", "Best queries", "Worst queries", "batch_size: 4"):
        assert words in text
    assert text.count("<svg") == 3
    assert "data:image/jpeg;base64," in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)  # nothing is fetched
    assert "<script" not in text
    figures = json.loads(amex("eval", run, "--json").stdout)
    assert f"{figures['rsum']:.1f}" in text


def test_captions_are_text_not_html(run: Path) -> None:
    assert "&lt;script&gt;alert(" in page(run).read_text()
    found = amex("search", run, WICKED, "--html", run / "found.html", "--videos", run.parent / "videos", "-k", "3")
    assert found.exit_code == 0, found.output
    text = (run / "found.html").read_text()
    assert "<script" not in text
    assert "<b>cat" not in text
    assert text.count("data:image/jpeg;base64,") == 3
    assert re.search(r"[0-9], v[0-9]+\S*, 0\.0 s to ", text)  # the score, the clip, its seconds


def test_without_videos_a_page_has_no_pictures_and_a_missing_video_costs_only_its_own(
    run: Path, tmp_path: Path
) -> None:
    known = amex("report", run, "--out", tmp_path / "known.html")
    assert known.exit_code == 0, known.output
    assert "no picture" not in (tmp_path / "known.html").read_text()  # the store knows where its videos are
    sources = run.parent / "s.zarr" / "sources.json"
    sources.rename(tmp_path / "sources.json")
    bare = amex("report", run, "--out", tmp_path / "bare.html")
    (tmp_path / "sources.json").rename(sources)
    assert bare.exit_code == 0, bare.output
    assert "no picture" in (tmp_path / "bare.html").read_text()
    shutil.copytree(run.parent / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "v10.mp4").unlink()
    partly = amex("report", run, "--out", tmp_path / "partly.html", "--videos", tmp_path / "videos")
    assert partly.exit_code == 0, partly.output
    assert "no thumbnail of v10.mp4" in partly.output
    text = (tmp_path / "partly.html").read_text()
    assert "data:image/jpeg" in text
    assert "no picture" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; Debian has it as a package")
def test_a_browser_shows_the_report(run: Path, tmp_path: Path) -> None:
    shot, profile = tmp_path / "shot.png", tmp_path / "profile"
    browser = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command = [
        *browser, "--window-size=1240,1800", "--enable-logging=stderr", f"--screenshot={shot}", page(run).as_uri(),
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert shot.is_file(), done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    blue = np.abs(pixels - [47, 111, 176]).sum(axis=-1) < 30
    assert blue[400:].sum() > 500  # curves or bars are drawn
    dom = subprocess.run(
        [*browser, "--dump-dom", page(run).as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert "Where the right clip came" in dom


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    result = amex("report", tmp_path)
    assert result.exit_code == 1
    assert str(tmp_path) in result.output
