"""Parts are minutes of work whose rows fit in memory, and the cuts do not depend on finished clips."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import write_lines
from hypothesis import given
from hypothesis import strategies as st
from test_changed import TINY, compute
from test_extract import tree
from videos import encode

from amex.extract.encoders.devices import choose_precision
from amex.extract.encoders.registry import plan_stream
from amex.extract.limits import part_bounds
from amex.extract.run import job, plan
from amex.extract.run.display import NoDisplay
from amex.extract.video.sampling import Sampling
from amex.features import open_store
from amex.manifests import Clip, VideoFinder, read_manifest

work = st.tuples(st.floats(0, 2000), st.floats(0, 2 * plan.PART_BYTES))


@given(st.dictionaries(st.text(max_size=3), work, min_size=1, max_size=30), st.floats(0.5, 30))
def test_parts_stay_within_both_bounds_and_no_two_fit_in_one(
    videos: dict[str, tuple[float, float]], minutes: float
) -> None:
    parts = list(plan._parts(videos, minutes))
    assert [video for part in parts for video in part] == list(videos)

    def fits(part: list[str]) -> bool:
        seconds, size = (sum(videos[video][which] for video in part) for which in (0, 1))
        return seconds <= minutes * 60 and size <= plan.PART_BYTES

    assert all(fits(part) for part in parts if len(part) > 1)
    assert not any(fits([*before, after[0]]) for before, after in itertools.pairwise(parts))


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> VideoFinder:
    """A folder of 40 sparse files with the sizes of videos of one minute to half an hour."""
    folder = tmp_path_factory.mktemp("sized")
    for number in range(40):
        with (folder / f"v{number:02d}.mp4").open("wb") as file:
            file.truncate(plan.BYTES_A_SECOND * 60 * (1 + 7 * number % 30))
    return VideoFinder(folder)


@given(done=st.sets(st.integers(0, 79)))
def test_finished_clips_do_not_move_the_cuts(sized: VideoFinder, done: set[int]) -> None:
    clips = []
    for number in range(40):  # a short clip and the whole video
        clips.append(Clip(clip_id=str(2 * number), video=f"v{number:02d}", start=0, end=10))
        clips.append(Clip(clip_id=str(2 * number + 1), video=f"v{number:02d}"))

    class Some:
        """Replaces a stream that contains the clips in ``done``."""

        replaced = frozenset()

        def state(self, clip_id: str) -> str:
            return "done" if int(clip_id) in done else "absent"

        def source(self, clip_id: str) -> plan.ClipSource:
            return plan.ClipSource(recorded=False)

    def cut(stream: Some | None, number: int = 0, of: int = 1) -> list[list[str]]:
        files = plan.VideoFiles(sized)
        parts = plan.plan_parts(
            clips, files, [], [stream], part_clips=30, part_minutes=15, partition=plan.Partition(number, of)
        )
        return [[clip.clip_id for video in part.videos for clip in video.clips] for part in parts]

    all_parts = cut(None)
    assert 10 < len(all_parts) < 40
    left = [[clip_id for clip_id in part if int(clip_id) not in done] for part in all_parts]
    assert cut(Some()) == [part for part in left if part]
    assert sorted(part for number in range(3) for part in cut(None, number, 3)) == sorted(all_parts)


def test_rows_are_bounded_too(sized: VideoFinder) -> None:
    """A minute with 36 objects per frame is 133 MB of rows; minutes alone would make one part of ten clips."""
    clips = [Clip(clip_id=str(number), video=f"v{number:02d}", start=0, end=60) for number in range(10)]

    class Objects:
        sampling = Sampling(frames=1, stride=1)
        spec = {"output": {"shape": [36, 1024], "dtype": "float16"}}  # noqa: RUF012

    parts = list(plan.plan_parts(clips, plan.VideoFiles(sized), [Objects], [None], part_clips=64, part_minutes=60))
    rows = 60 * plan.EXPECTED_RATE * 36 * 1024 * 2
    assert [len(part.videos) for part in parts] == [max(1, int(plan.PART_BYTES // rows))] * len(parts)


def test_an_interrupted_run_of_long_clips_keeps_the_finished_ones(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six clips are one group. Their files are so large that each becomes a part."""
    videos, manifest = tmp_path / "videos", tmp_path / "m.jsonl"
    videos.mkdir()
    lines = []
    for number in range(6):
        encode(videos / f"v{number}.mp4", frames=24, first=number)
        lines.append({"clip_id": str(number), "video": f"v{number}", "start": 0, "end": 400})
    write_lines(manifest, *lines)
    compute(videos, tmp_path / "whole.zarr", cluster, manifest)

    store = tmp_path / "s.zarr"

    def interrupt() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and not list(store.glob(f"{TINY}/commits/*.json")):
            time.sleep(0.01)
        if time.monotonic() < until:
            os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=interrupt)
    settings = {"frames": "1", "stride": "8"}
    stream = plan_stream(
        TINY, TINY, device="cpu", precision=choose_precision("auto", "cpu"), weights="random:0", options=settings
    )
    watcher.start()
    options = {"store": store, "videos": videos, "device": "cpu", "workers": 1, "display": NoDisplay()}
    with pytest.raises(KeyboardInterrupt):
        job.extract(read_manifest(manifest), [stream], cluster=cluster, **options)
    watcher.join()
    done = len(open_store(store)[TINY])
    assert 1 <= done < 6
    assert compute(videos, store, cluster, manifest)["report"]["clips"] <= 6 - done
    assert tree(store) == tree(tmp_path / "whole.zarr")


def test_parts_are_larger_on_a_gpu_unless_the_user_sets_the_size() -> None:
    assert part_bounds("cpu", None, None) == (64, 5.0)
    assert part_bounds("cuda", None, None) == part_bounds("cuda:1", None, None) == (1024, 60.0)
    assert part_bounds("cuda", 7, 0.5) == (7, 0.5)


def test_runs_that_share_a_manifest_cut_it_equally_on_every_device() -> None:
    on_gpu, on_cpu = (part_bounds(device, None, None, partitioned=True)[0] for device in ("cuda", "cpu"))
    assert on_gpu == on_cpu == 64
