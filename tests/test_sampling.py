"""Windows match their definition for any clip, rate, window and stride."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amex.errors import AmexError
from amex.extract.encoders.kinds import DEFAULT_PRESET
from amex.extract.encoders.presets import PRESETS
from amex.extract.video.sampling import SampledWindow, Sampler, Sampling, exact

samplings = st.builds(
    Sampling,
    fps=st.one_of(st.none(), st.sampled_from([0.5, 1, 7, 16, 25, 29.97, 60])),
    at=st.sampled_from(["shown", "nearest"]),
    frames=st.integers(1, 9),
    step=st.integers(1, 4),
    stride=st.integers(1, 12),
    tail=st.sampled_from(["pad", "drop"]),
)
# Presentation times in whole milliseconds, as in Matroska, with any start and any gaps.
timelines = st.tuples(
    st.integers(-500, 5000), st.lists(st.integers(1, 200), min_size=1, max_size=120), st.integers(1, 100)
)


def edges_of(timeline: tuple[int, list[int], int]) -> list[Fraction]:
    start, gaps, last = timeline
    ticks = [start]
    for gap in [*gaps, last]:
        ticks.append(ticks[-1] + gap)
    return [Fraction(tick, 1000) for tick in ticks]


def steady(count: int, fps: int = 25) -> list[Fraction]:
    return [Fraction(key, fps) for key in range(count + 1)]


def run(
    sampling: Sampling, edges: list[Fraction], start: float | None = None, end: float | None = None
) -> list[SampledWindow]:
    sampler = Sampler(sampling, start, end, edges[-1])
    windows: list[SampledWindow] = []
    for key, (begin, until) in enumerate(itertools.pairwise(edges)):
        windows += sampler.push(key, begin, until, last=key == len(edges) - 2)
    return windows + sampler.finish()


def samples(sampling: Sampling, edges: list[Fraction], start: Fraction, end: Fraction) -> list[int]:
    """Return the sampled frames by the definition, from all frames of the clip at once."""
    frames = range(len(edges) - 1)
    end = min(end, edges[-1])
    begun = [key for key in frames if start <= edges[key] < end]
    on_screen = [key for key in frames if edges[key] < end and start < edges[key + 1]]
    by_time = sampling.at == "shown" or not begun
    inside = on_screen if by_time else begun
    if not inside or sampling.fps is None:
        return inside
    rate = exact(sampling.fps)
    origin = max(start, edges[inside[0]])
    margin = 0 if sampling.at == "shown" else 1 / (100 * rate)  # for clocks that round the end of the clip
    sequence = []
    for k in itertools.count():
        instant = origin + k / rate
        if k and (instant > end - margin if margin else instant >= end):
            return sequence
        if by_time:
            sequence.append(next(key for key in reversed(inside) if edges[key] <= instant))
        else:
            sequence.append(min(inside, key=lambda key: (abs(edges[key] - instant), key)))
    raise AssertionError


def by_definition(sampling: Sampling, edges: list[Fraction], start: Fraction, end: Fraction) -> list[tuple[int, ...]]:
    """Return the windows of the sampled frames."""
    sequence = samples(sampling, edges, start, end)
    windows, at = [], 0
    covered = 0
    while at < len(sequence) and (at == 0 or covered < len(sequence)):
        positions = [at + j * sampling.step for j in range(sampling.frames)]
        present = [sequence[p] for p in positions if p < len(sequence)]
        covered = at + sampling.span
        if len(present) == len(positions) or sampling.tail == "pad":
            windows.append(tuple(present + present[-1:] * (len(positions) - len(present))))
        at += sampling.stride
    return windows


@given(samplings, timelines)
def test_windows_match_their_definition(sampling: Sampling, timeline: tuple) -> None:
    edges = edges_of(timeline)
    far = Fraction(10**9)
    assert [window.keys for window in run(sampling, edges)] == by_definition(sampling, edges, -far, far)


@given(samplings, timelines, st.integers(-600, 9000), st.integers(1, 9000))
@example(Sampling(fps=1, frames=1, stride=1, at="shown"), (0, [10_000, 10_000], 10_000), 12_000, 6_000)
@example(Sampling(fps=1, frames=1, stride=1), (0, [10_000, 10_000], 10_000), 12_000, 6_000)
@example(Sampling(frames=1, stride=1), (0, [10_000, 10_000], 10_000), 12_000, 6_000)
def test_a_clip_has_exactly_the_frames_of_its_rule(
    sampling: Sampling, timeline: tuple, start: int, length: int
) -> None:
    edges = edges_of(timeline)
    begin, end = Fraction(start, 1000), Fraction(start + length, 1000)
    windows = run(sampling, edges, start / 1000, (start + length) / 1000)
    assert [window.keys for window in windows] == by_definition(sampling, edges, begin, end)
    for window in windows:
        assert window.start == float(edges[window.keys[0]])
        assert window.end == float(edges[window.keys[-1] + 1])
        assert window.start < end
        assert window.end > begin


SLIDES = [Fraction(second) for second in (0, 10, 20, 30)]


def test_the_frame_on_screen_is_sampled_even_if_it_starts_before_the_clip() -> None:
    shown = Sampling(fps=1, frames=1, stride=1, at="shown")
    assert [window.keys for window in run(shown, SLIDES, 12, 18)] == [(1,)] * 6
    assert [window.keys for window in run(shown, SLIDES, 5, 15)] == [(0,)] * 5 + [(1,)] * 5
    assert run(shown, SLIDES, 12, 18)[0] == SampledWindow((1,), 10.0, 20.0)  # the time of the frame, not of the sample
    assert [window.keys for window in run(Sampling(count=2, frames=1, stride=1, at="shown"), SLIDES, 5, 15)] == [
        (0,),
        (1,),
    ]


def test_a_clip_in_which_no_frame_starts_has_the_frame_on_screen_under_every_rule() -> None:
    for sampling in (Sampling(frames=1, stride=1), Sampling(fps=0.1, frames=1), Sampling(count=1, frames=1)):
        assert [window.keys for window in run(sampling, SLIDES, 12, 18)] == [(1,)], sampling
    assert [window.keys for window in run(Sampling(fps=1, frames=1, stride=1), SLIDES, 5, 15)] == [(1,)] * 5


@given(st.sampled_from([24000, 25000, 30000, 60000]), st.sampled_from([1000, 1001]), st.integers(0, 200_000))
def test_a_bound_computed_from_a_frame_number_equals_that_frames_time(rate: int, base: int, number: int) -> None:
    assert exact(number * base / rate) == Fraction(number * base, rate)


@given(st.integers(0, 10_000_000))
def test_a_bound_is_exactly_the_written_decimal(hundredths: int) -> None:
    assert exact(hundredths / 100) == Fraction(hundredths, 100)


@given(samplings, st.integers(0, 300))
def test_the_predicted_number_of_windows_is_correct(sampling: Sampling, samples: int) -> None:
    native = Sampling(frames=sampling.frames, step=sampling.step, stride=sampling.stride, tail=sampling.tail)
    windows = run(native, steady(samples)) if samples else []
    assert native.windows(samples) == len(windows)


@given(samplings, timelines)
def test_a_sampler_holds_at_most_one_window_of_frames(sampling: Sampling, timeline: tuple) -> None:
    edges = edges_of(timeline)
    sampler = Sampler(sampling)
    for key in range(len(edges) - 1):
        before = len(sampler._held)
        sampler.push(key, edges[key], edges[key + 1], last=key == len(edges) - 2)
        repeats = 1 if sampling.fps is None else max(1, len(sampler._held) - before + sampling.stride)
        assert len(sampler._held) <= sampling.span + repeats


@given(
    st.integers(1, 20), st.sampled_from(["shown", "nearest"]), timelines, st.integers(-600, 9000), st.integers(1, 9000)
)
def test_a_count_of_samples_is_taken_at_the_middles_of_equal_intervals(
    count: int, at: str, timeline: tuple, start: int, length: int
) -> None:
    edges = edges_of(timeline)
    begin, end = start / 1000, (start + length) / 1000
    windows = run(Sampling(count=count, frames=1, stride=1, at=at), edges, begin, end)
    inside = samples(Sampling(at=at), edges, exact(begin), exact(end))
    assert len(windows) == (count if inside else 0)
    for index, window in enumerate(windows):
        first, last = max(edges[inside[0]], exact(begin)), min(exact(end), edges[-1])
        middle = first + (index + Fraction(1, 2)) * (last - first) / count
        (key,) = window.keys
        assert edges[key] <= middle < edges[key + 1]
    full_clip = run(Sampling(count=count, frames=count, stride=count, at=at), edges, begin, end)
    assert [key for window in full_clip for key in window.keys] == [window.keys[0] for window in windows]


def test_resampling_to_the_same_rate_keeps_every_frame_once_on_a_millisecond_clock() -> None:
    edges = [Fraction(round(k * 1000 / 30), 1000) for k in range(301)]
    windows = run(Sampling(fps=30, frames=1, stride=1), edges)
    assert [window.keys[0] for window in windows] == list(range(300))


def test_one_frame_per_second_of_ten_seconds_is_ten_frames() -> None:
    windows = run(Sampling(fps=1, frames=1, stride=1), steady(250))
    assert [window.keys[0] for window in windows] == list(range(0, 250, 25))


def test_the_tail_is_padded_with_the_last_frame_or_dropped() -> None:
    edges = steady(20)
    assert run(Sampling(frames=16, stride=16), edges)[1].keys == (16, 17, 18, *[19] * 13)
    assert run(Sampling(frames=16, stride=16), edges)[1].end == pytest.approx(0.8)
    assert len(run(Sampling(frames=16, stride=16, tail="drop"), edges)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 0},
        {"stride": 0},
        {"step": -1},
        {"fps": 0},
        {"tail": "mirror"},
        {"count": 0},
        {"count": 2, "fps": 1},
        {"at": "once"},
    ],
)
def test_impossible_sampling_is_refused_by_name(wrong: dict) -> None:
    with pytest.raises(AmexError, match=next(iter(wrong))):
        Sampling(**wrong)


# Sampling of streams from before the option `at`. The specs in stores contain it.
OLDER = {  # fps, frames, step, stride
    "r2plus1d_18": (None, 16, 1, 16),
    "r2plus1d_tiny": (8, 12, 1, 4),
    "s3d": (None, 64, 1, 64),
    "i3d": (None, 64, 1, 64),
    "i3d_25fps": (25, 64, 1, 64),
    "mmaction2_32x2": (None, 32, 2, 64),
    "mmaction2_8x8": (None, 8, 8, 64),
    "ig65m_8": (None, 8, 1, 8),
    "ig65m_32": (None, 32, 1, 32),
    "mil_nce_16fps": (16, 32, 1, 16),
    "mil_nce_30fps": (30, 30, 1, 30),
    "howto100m_3d": (24, 16, 1, 16),
    "frames_1fps": (1, 1, 1, 1),
    "clip4clip": (1, 1, 1, 1),
}


def test_older_presets_keep_their_sampling_and_spec() -> None:
    for name, numbers in OLDER.items():
        expected = dict(zip(("fps", "frames", "step", "stride"), numbers, strict=True)) | {"tail": "pad"}
        assert PRESETS[name].sampling.spec == expected, name
        assert PRESETS[name].sampling.at == "nearest"


def test_image_networks_and_clip_sample_the_frame_on_screen_by_default() -> None:
    assert {"frames_1fps_shown", "clip4clip_shown"} <= PRESETS.keys() - OLDER.keys()
    for network, older in (("resnet152", "frames_1fps"), ("clip_vit_b32", "clip4clip"), ("clip", "clip4clip")):
        preset = PRESETS[DEFAULT_PRESET[network]]
        assert preset.sampling.spec == PRESETS[older].sampling.spec | {"at": "shown"}
        assert preset.transform == PRESETS[older].transform
