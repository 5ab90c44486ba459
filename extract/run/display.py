"""The progress of a run: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...errors import plural, printable
from .part import Report
from .shares import shares_of

# Seconds between lines of a LineDisplay.
LINE_INTERVAL = 10.0


class Totals:
    """The sum of the latest reports of all parts. A new report of a part replaces its previous one.

    The cost of an update does not depend on the number of parts.

    Attributes:
        what: ``clips``; ``captions`` in a run without clips.
        total: number of clips or captions in the run.
    """

    def __init__(self, clips: int, captions: int) -> None:
        self.parts: dict[int, Report] = {}
        self.sum = Report()
        self.started = time.monotonic()
        self.what = "clips" if clips else "captions"
        self.total = clips or captions

    def update(self, part: int, report: Report) -> Report:
        """Replace the report of a part; return the sum."""
        self.sum.add(report)
        if part in self.parts:
            self.sum.add(self.parts[part], sign=-1)
        self.parts[part] = report
        return self.sum

    def done(self, total: Report) -> int:
        """Return the number of finished clips or captions."""
        return getattr(total, self.what)

    def rate(self, total: Report) -> float:
        """Return clips or captions per second."""
        return self.done(total) / max(1e-6, time.monotonic() - self.started)


def workers_text(count: int, logs: Path | None) -> str:
    """Return the number of workers, or the folder of their logs if there are none."""
    if count:
        return plural(count, "worker")
    return "waiting for workers" + (f"; their logs: {printable(str(logs))}" if logs else "")


class LiveDisplay:
    """A progress bar with clips per second, rows, failures, remaining time, and the bottleneck of the run."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("extracting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(
                "{task.fields[what]}  {task.fields[rate]:.2f}/s  {task.fields[rows]}  "
                "{task.fields[failed]} failed  {task.fields[workers]}",
                markup=False,
            ),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[hint]}"),
            console=console,
            speed_estimate_period=600,
        )

    def note(self, text: str) -> None:
        self.progress.console.print(text)

    def begin(self, parts: int, clips: int, captions: int) -> None:
        self.totals = Totals(clips, captions)
        fields = {
            "what": self.totals.what,
            "rate": 0.0,
            "rows": "0 rows",
            "failed": 0,
            "workers": "starting",
            "hint": "",
        }
        self.task = self.progress.add_task("", total=self.totals.total, **fields)
        self.progress.start()

    def workers(self, count: int, logs: Path | None) -> None:
        self.progress.update(self.task, workers=workers_text(count, logs))

    def update(self, part: int, report: Report) -> None:
        total = self.totals.update(part, report)
        fields = {"rate": self.totals.rate(total), "rows": plural(total.rows, "row"), "failed": total.failed}
        fields["hint"] = shares_of(total.seconds).hint
        self.progress.update(self.task, completed=self.totals.done(total), **fields)

    def end(self) -> None:
        self.progress.stop()


class LineDisplay:
    """A line every LINE_INTERVAL seconds, for logs. It ends with the shares of time and the bottleneck of the run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.shown_workers = -1

    def note(self, text: str) -> None:
        self.console.print(text)

    def begin(self, parts: int, clips: int, captions: int) -> None:
        self.totals = Totals(clips, captions)
        self.next, self.finished = time.monotonic(), False
        text = f" and {plural(captions, 'caption')}" if clips and captions else ""
        counted = plural(self.totals.total, self.totals.what.removesuffix("s"))
        self.console.print(f"extracting {counted}{text} in {plural(parts, 'part')}")

    def workers(self, count: int, logs: Path | None) -> None:
        if count != self.shown_workers:
            self.shown_workers = count
            self.console.print(workers_text(count, logs))

    def update(self, part: int, report: Report) -> None:
        total = self.totals.update(part, report)
        done = self.totals.done(total)
        last = done == self.totals.total
        if time.monotonic() < self.next and (not last or self.finished):
            return
        self.finished = last
        self.next = time.monotonic() + LINE_INTERVAL
        rate = self.totals.rate(total)
        left = f"{(self.totals.total - done) / rate:.0f} s left" if rate else "time left not known yet"
        shares = str(shares_of(total.seconds))
        self.console.print(
            f"{done}/{self.totals.total} {self.totals.what}, {rate:.2f}/s, {plural(total.rows, 'row')}, "
            f"{total.failed} failed, {left}{f'; {shares}' if shares else ''}"
        )

    def end(self) -> None:
        pass


class NoDisplay:
    """Prints nothing."""

    def note(self, text: str) -> None:
        pass

    def begin(self, parts: int, clips: int, captions: int) -> None:
        pass

    def workers(self, count: int, logs: Path | None) -> None:
        pass

    def update(self, part: int, report: Report) -> None:
        pass

    def end(self) -> None:
        pass


def choose_display(console: Console, quiet: bool = False) -> LiveDisplay | LineDisplay | NoDisplay:
    """Return the display for a console: live on a terminal, else lines; none if ``quiet``."""
    if quiet:
        return NoDisplay()
    return LiveDisplay(console) if console.is_terminal else LineDisplay(console)
