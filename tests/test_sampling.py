"""Windows are what their definition says, for any clip, rate, window and stride."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amex.errors import AmexError
from amex.extract.sampling import Sampler, Sampling, Window

samplings = st.builds(
    Sampling,
    fps=st.one_of(st.none(), st.sampled_from([0.5, 1, 7, 16, 25, 30, 60])),
    frames=st.integers(1, 9),
    step=st.integers(1, 4),
    stride=st.integers(1, 12),
    tail=st.sampled_from(["pad", "drop"]),
)
# Presentation times in whole milliseconds, as Matroska has them: any start, any gaps.
timelines = st.tuples(
    st.integers(-500, 5000), st.lists(st.integers(1, 200), min_size=1, max_size=120), st.integers(1, 100)
)


def edges_of(timeline: tuple[int, list[int], int]) -> list[float]:
    start, gaps, last = timeline
    ticks = [start]
    for gap in [*gaps, last]:
        ticks.append(ticks[-1] + gap)
    return [tick / 1000 for tick in ticks]


def run(sampling: Sampling, edges: list[float], start: float | None = None, end: float | None = None) -> list[Window]:
    sampler = Sampler(sampling, start, end, edges[-1])
    windows: list[Window] = []
    for key, (begin, until) in enumerate(itertools.pairwise(edges)):
        windows += sampler.push(key, begin, until, last=key == len(edges) - 2)
    return windows + sampler.finish()


def by_definition(sampling: Sampling, edges: list[float], start: float, end: float) -> list[tuple[int, ...]]:
    """The windows written down at once, looking at the whole clip."""
    inside = [key for key, begin in enumerate(edges[:-1]) if start <= begin < end]
    if not inside:
        return []
    if sampling.fps is None:
        sequence = inside
    else:
        first, limit = edges[inside[0]], min(end, edges[inside[-1] + 1])
        sequence, k = [], 0
        while k == 0 or first + k / sampling.fps <= limit - 0.01 / sampling.fps:
            instant = first + k / sampling.fps
            sequence.append(min(inside, key=lambda key: (round(abs(edges[key] - instant), 8), key)))
            k += 1
    windows, at = [], 0
    covered = 0
    while at < len(sequence) and (at == 0 or covered < len(sequence)):
        positions = [at + j * sampling.step for j in range(sampling.frames)]
        there = [sequence[p] for p in positions if p < len(sequence)]
        covered = at + sampling.span
        if len(there) == len(positions) or sampling.tail == "pad":
            windows.append(tuple(there + there[-1:] * (len(positions) - len(there))))
        at += sampling.stride
    return windows


@given(samplings, timelines)
def test_windows_are_those_of_the_definition(sampling: Sampling, timeline: tuple) -> None:
    edges = edges_of(timeline)
    assert [window.keys for window in run(sampling, edges)] == by_definition(sampling, edges, -1e9, 1e9)


@given(samplings.filter(lambda s: s.fps is None), timelines, st.integers(-600, 9000), st.integers(1, 9000))
def test_a_clip_has_exactly_the_frames_in_its_interval(
    sampling: Sampling, timeline: tuple, start: int, length: int
) -> None:
    edges = edges_of(timeline)
    begin, end = start / 1000, (start + length) / 1000
    windows = run(sampling, edges, begin, end)
    assert [window.keys for window in windows] == by_definition(sampling, edges, begin, end)
    for window in windows:
        assert begin <= window.start < end
        assert window.start == edges[window.keys[0]]
        assert window.end == edges[window.keys[-1] + 1]


@given(samplings, st.integers(0, 300))
def test_count_is_the_number_of_windows_made(sampling: Sampling, samples: int) -> None:
    native = Sampling(frames=sampling.frames, step=sampling.step, stride=sampling.stride, tail=sampling.tail)
    windows = run(native, [key / 25 for key in range(samples + 1)]) if samples else []
    assert native.windows(samples) == len(windows)


@given(samplings, timelines)
def test_no_more_than_a_window_of_frames_is_held(sampling: Sampling, timeline: tuple) -> None:
    edges = edges_of(timeline)
    sampler = Sampler(sampling)
    for key in range(len(edges) - 1):
        before = len(sampler._held)
        sampler.push(key, edges[key], edges[key + 1], last=key == len(edges) - 2)
        repeats = 1 if sampling.fps is None else max(1, len(sampler._held) - before + sampling.stride)
        assert len(sampler._held) <= sampling.span + repeats


@given(st.integers(1, 20), timelines, st.integers(-600, 9000), st.integers(1, 9000))
def test_so_many_samples_a_clip_are_the_middles_of_equal_stretches(
    count: int, timeline: tuple, start: int, length: int
) -> None:
    edges = edges_of(timeline)
    begin, end = start / 1000, (start + length) / 1000
    windows = run(Sampling(count=count, frames=1, stride=1), edges, begin, end)
    inside = [key for key, time in enumerate(edges[:-1]) if begin <= time < end]
    assert len(windows) == (count if inside else 0)
    for index, window in enumerate(windows):
        first, last = edges[inside[0]], min(end, edges[-1])
        middle = first + (index + 0.5) * (last - first) / count
        (key,) = window.keys
        assert edges[key] - 1e-8 <= middle <= edges[key + 1] + 1e-8
    whole = run(Sampling(count=count, frames=count, stride=count), edges, begin, end)
    assert [key for window in whole for key in window.keys] == [window.keys[0] for window in windows]


def test_resampling_to_the_same_rate_repeats_and_skips_nothing_on_a_millisecond_clock() -> None:
    edges = [round(k * 1000 / 30) / 1000 for k in range(301)]
    windows = run(Sampling(fps=30, frames=1, stride=1), edges)
    assert [window.keys[0] for window in windows] == list(range(300))


def test_one_frame_a_second_of_ten_seconds_is_ten_frames() -> None:
    windows = run(Sampling(fps=1, frames=1, stride=1), [k / 25 for k in range(251)])
    assert [window.keys[0] for window in windows] == list(range(0, 250, 25))


def test_the_tail_is_padded_with_its_last_frame_or_dropped() -> None:
    edges = [k / 25 for k in range(21)]
    assert run(Sampling(frames=16, stride=16), edges)[1].keys == (16, 17, 18, *[19] * 13)
    assert run(Sampling(frames=16, stride=16), edges)[1].end == pytest.approx(0.8)
    assert len(run(Sampling(frames=16, stride=16, tail="drop"), edges)) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"frames": 0}, {"stride": 0}, {"step": -1}, {"fps": 0}, {"tail": "mirror"}, {"count": 0}, {"count": 2, "fps": 1}],
)
def test_impossible_sampling_is_refused_by_name(wrong: dict) -> None:
    with pytest.raises(AmexError, match=next(iter(wrong))):
        Sampling(**wrong)
