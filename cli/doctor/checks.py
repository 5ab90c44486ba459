"""Run each check in a process of its own: a crash or a hang affects only the lines of that check."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from ...errors import plural, printable
from .findings import ROOT, Finding, Subject

# Time limit of a check in seconds. On a busy network file system, importing torch takes half a minute.
LIMIT = 60.0
# Number of parallel checks. Most of them wait for the disk that Python imports from.
TOGETHER = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class Check:
    """A function of a module of this package that yields findings.

    Attributes:
        what: the subject, for the table if the check ends without a finding.
        essential: whether amex cannot work if the check crashes.
    """

    module: str
    function: str
    what: str
    essential: bool = False


CHECKS = (
    Check(module="packages", function="packages", what="installed packages", essential=True),
    Check(module="places", function="folder", what="the folder of the store", essential=True),
    Check(module="machine", function="machine", what="memory and limits"),
    Check(module="machine", function="computing", what="torch", essential=True),
    Check(module="video", function="video", what="decoding by PyAV", essential=True),
    Check(module="video", function="decord", what="decoding by decord"),
    Check(module="models", function="training", what="training and detectors", essential=True),
    Check(module="machine", function="workers", what="Dask", essential=True),
    Check(module="models", function="weights", what="weights"),
    Check(module="packages", function="language", what="language"),
    Check(module="places", function="bucket", what="S3"),
)


def examine(folder: Path, bucket: str = "", progress: Callable[[], None] = lambda: None) -> list[Finding]:
    """Run all checks, several at a time; return their findings in the order of ``CHECKS``.

    Args:
        folder, bucket: see ``Subject``.
        progress: called after each check, from another thread.
    """
    subject = Subject(folder=folder, bucket=bucket)
    processes: list[subprocess.Popen[str]] = []

    def examined(check: Check) -> list[Finding]:
        findings = _run(check, subject, processes)
        progress()
        return findings

    with ThreadPoolExecutor(TOGETHER) as pool:
        try:
            return [finding for findings in pool.map(examined, CHECKS) for finding in findings]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                _end(process)
            raise


def _run(check: Check, subject: Subject, processes: list[subprocess.Popen[str]]) -> list[Finding]:
    """Run a check; return its findings, and one more if it did not finish."""
    beside = str(ROOT.parent)  # for a checkout; the user's entries take precedence
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH", ""), beside)))
    command = [sys.executable, "-m", __package__, check.module, check.function, str(subject.folder), subject.bucket]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # so that its children can be killed with it
    )
    processes.append(process)
    output = problem = ""
    try:
        output, errors = process.communicate(timeout=LIMIT)
        if process.returncode:
            problem = _last_words(process.returncode, errors)
    except subprocess.TimeoutExpired:
        problem = f"no answer within {plural(int(LIMIT), 'second')}"
        _end(process)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process that left the group has its pipes
            output, _ = process.communicate(timeout=5)
    _end(process)
    findings = [Finding(**json.loads(line)) for line in output.splitlines() if line.endswith("}")]
    if problem:
        remedy = f"run it alone to see more: {' '.join(map(repr, command))}"
        broken = Finding(
            what=check.what, state="broken", found=problem, remedy=remedy, essential=check.essential and not findings
        )
        findings.append(broken)
    return findings


def _last_words(code: int, errors: str) -> str:
    """Return in one line why a process ended."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return printable(f"{how}: {lines[-1]}" if lines and code > 0 else how)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process and all its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def report(finding: Finding) -> str:
    """Return a finding as a line of JSON."""
    return json.dumps(asdict(finding))
