"""The display shows the sum of the parts' reports at a constant cost, and only one thread uses it."""

from __future__ import annotations

import io
import random
import threading
from pathlib import Path

import pytest
from rich.console import Console
from stand_in import CHATTER, chatter

from amex.extract.run import job
from amex.extract.run.cluster import remote
from amex.extract.run.display import LineDisplay, LiveDisplay, Totals
from amex.extract.run.part import PartTask, Report


def test_the_totals_are_the_sum_of_the_latest_reports() -> None:
    chance, totals, latest = random.Random(0), Totals(100, 0), dict[int, Report]()
    for _ in range(500):
        part = chance.randrange(20)
        latest[part] = Report(clips=chance.randrange(9), failed=chance.randrange(9), rows=chance.randrange(9))
        shown = totals.update(part, latest[part])
        for name in ("clips", "failed", "rows"):
            assert getattr(shown, name) == sum(getattr(report, name) for report in latest.values())


def test_the_cost_of_an_update_does_not_depend_on_the_number_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    totals = Totals(10**6, 0)
    for part in range(14_000):
        totals.update(part, Report(clips=1))
    added: list[Report] = []
    add = Report.add
    monkeypatch.setattr(Report, "add", lambda self, *given, **named: (added.append(self), add(self, *given, **named)))
    assert totals.update(7, Report(clips=3)).clips == 14_002
    assert totals.update(14_000, Report(clips=1)).clips == 14_003
    assert len(added) <= 4


class Watched:
    """A display that records its threads and reports."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.reports: dict[int, list[int]] = {}

    def workers(self, count: int, logs: Path | None) -> None:
        self.threads.add(threading.get_ident())

    def update(self, part: int, report: Report) -> None:
        self.threads.add(threading.get_ident())
        self.reports.setdefault(part, []).append(report.clips)


def test_hundreds_of_events_reach_the_display_by_one_thread(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "run_task", chatter)
    display = Watched()
    with remote(cluster) as workers:
        tasks = [PartTask(index=number, videos=()) for number in range(4)]
        report, broken = job.run_tasks(workers, tasks, None, "cpu", display)
    assert (report.clips, report.rows, broken) == (4 * CHATTER, 4, {})
    assert display.threads == {threading.get_ident()}
    for clips in display.reports.values():  # no event follows the report of a finished part
        assert clips == sorted(clips)
        assert clips[-1] == CHATTER
    assert sum(map(len, display.reports.values())) > len(tasks)


@pytest.mark.parametrize("kind", [LiveDisplay, LineDisplay])
def test_folder_names_are_not_parsed_as_markup(kind: type[LiveDisplay] | type[LineDisplay]) -> None:
    written = io.StringIO()
    display = kind(Console(file=written, width=150, markup=False))
    display.begin(1, 1, 0)
    display.workers(0, Path("/[/logs] [red]\x1b"))
    display.update(0, Report(clips=1))
    display.end()
    assert r"their logs: /[/logs] [red]\x1b" in written.getvalue()


def test_the_last_line_is_printed_once_and_counts_in_the_singular() -> None:
    text = io.StringIO()
    display = LineDisplay(Console(file=text, width=200))
    display.begin(1, 1, 0)
    for _ in range(3):
        display.update(0, Report(clips=1, rows=2))
    lines = text.getvalue().splitlines()
    assert lines[0] == "extracting 1 clip in 1 part"
    assert sum(line.startswith("1/1 clips") for line in lines) == 1
