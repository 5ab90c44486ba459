"""A run reports how its time was spent in shares that add up, and its bottleneck if it is certain."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from conftest import amex, extract
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_names import TINY

from amex.extract.run.display import LineDisplay, LiveDisplay
from amex.extract.run.part import Report
from amex.extract.run.shares import FEEDERS, WORKER, shares_of

DECODING = {"encode": 50.0, "write": 10.0, "wait": 40.0, "decode": 90.0, "transform": 10.0, "blocked": 0.0}
ENCODING = {"encode": 90.0, "write": 5.0, "wait": 5.0, "decode": 15.0, "transform": 5.0, "blocked": 80.0}
some_seconds = st.dictionaries(st.sampled_from([*WORKER, *FEEDERS]), st.floats(0, 1e9))


@given(some_seconds)
def test_the_shares_of_workers_and_of_feeders_add_up(seconds: dict[str, float]) -> None:
    shares = shares_of(seconds)
    for names, group in ((WORKER, shares.worker), (FEEDERS, shares.feeders)):
        total = 1.0 if sum(seconds.get(name, 0.0) for name in names) else 0.0
        assert sum(group.values()) == pytest.approx(total)
        assert all(0 <= share <= 1 for share in group.values())


def test_two_workers_have_the_same_shares_as_one_with_the_same_work() -> None:
    total = Report()
    for _ in range(2):
        total.add(Report(seconds=dict(ENCODING)))
    assert shares_of(total.seconds) == shares_of(ENCODING)


@pytest.mark.parametrize(
    ("seconds", "hint"),
    [
        (DECODING, "decoding limits: more --feeders"),
        (ENCODING, "encoding limits"),
        ({"encode": 60.0, "wait": 3.0, "decode": 5.0, "blocked": 0.1}, "encoding limits"),  # decoded long before
        (DECODING | {"wait": 10.0, "blocked": 20.0}, ""),  # balanced
        ({name: each / 100 for name, each in DECODING.items()}, ""),  # too short to tell
        ({"encode": 100.0, "write": 1.0, "wait": 50.0}, ""),  # text streams have no feeders
        ({}, ""),
    ],
)
def test_the_limit_of_a_run_is_named_if_it_is_certain(seconds: dict[str, float], hint: str) -> None:
    assert shares_of(seconds).hint == hint
    assert str(shares_of(seconds)).endswith(hint)


def test_shares_are_printed_as_percentages() -> None:
    assert str(shares_of(DECODING)) == (
        "workers 50% encode, 10% write, 40% idle; feeders 90% decode, 10% transform, 0% blocked; "
        "decoding limits: more --feeders"
    )
    assert str(shares_of({"encode": 3.0, "write": 1.0, "wait": 0.0})) == "workers 75% encode, 25% write, 0% idle"
    assert str(shares_of({})) == ""


@pytest.mark.parametrize("kind", [LiveDisplay, LineDisplay])
def test_the_progress_line_ends_with_the_limit_of_the_run(kind: type[LiveDisplay] | type[LineDisplay]) -> None:
    written = io.StringIO()
    display = kind(Console(file=written, width=200))
    display.begin(1, 4, 0)
    display.update(0, Report(clips=1, seconds=dict(DECODING)))
    display.end()
    assert written.getvalue().rstrip().endswith("decoding limits: more --feeders")


def test_a_run_reports_how_its_time_was_spent(clips: Path, tmp_path: Path, cluster: str) -> None:
    result = extract(clips, tmp_path / "s.zarr", cluster, "--limit", 2, "--feeders", 2, *TINY)
    assert set(result["report"]["seconds"]) == {*WORKER, *FEEDERS}
    assert min(result["report"]["seconds"].values()) >= 0
    for group, names in (("worker", WORKER), ("feeders", FEEDERS)):
        assert set(result["shares"][group]) == set(names.values())
        assert sum(result["shares"][group].values()) == pytest.approx(1)
    output = amex(
        "extract", "--dataset", "folder", "--videos", clips, "--store", tmp_path / "s.zarr", "--cluster", cluster, *TINY
    )
    assert "\n  time: workers " in output.stdout
    nothing = extract(clips, tmp_path / "s.zarr", cluster, *TINY)
    assert nothing["shares"] == {
        "worker": dict.fromkeys(WORKER.values(), 0.0),
        "feeders": dict.fromkeys(FEEDERS.values(), 0.0),
        "limit": "",
    }
