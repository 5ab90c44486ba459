"""The checks, and their processes: one that crashes or hangs costs its own lines of the table alone."""

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

# Seconds for one check: an installation on a busy network file system takes half a minute to import torch.
LIMIT = 60.0
# Checks at the same time. Each is a process of its own, and most wait for the disk that Python imports from.
TOGETHER = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class Check:
    """A function of a module of this package, which yields findings.

    Attributes:
        what: it looks at, as a table says if it ends without saying anything itself.
        essential: whether amex is of no use where it crashes.
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
    """Runs all checks, several at a time, and returns what they found in the order of ``CHECKS``.

    Args:
        folder, bucket: as of ``Subject``.
        progress: called after each check, from another thread.
    """
    subject = Subject(folder=folder, bucket=bucket)
    processes: list[subprocess.Popen[str]] = []

    def examined(check: Check) -> list[Finding]:
        found = _run(check, subject, processes)
        progress()
        return found

    with ThreadPoolExecutor(TOGETHER) as pool:
        try:
            return [finding for found in pool.map(examined, CHECKS) for finding in found]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                _end(process)
            raise


def _run(check: Check, subject: Subject, processes: list[subprocess.Popen[str]]) -> list[Finding]:
    """What a check finds, and a finding more where it does not come to its end."""
    beside = str(ROOT.parent)  # a checkout is found where it lies; what the user puts before it stays before it
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
        start_new_session=True,  # so that it ends with all that it has started
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
    """Why a process ended, in a line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return printable(f"{how}: {lines[-1]}" if lines and code > 0 else how)


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def report(finding: Finding) -> str:
    """A finding as its process writes it: a line of JSON."""
    return json.dumps(asdict(finding))
