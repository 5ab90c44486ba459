"""Real faults of disks and networks: ``pytest -m system``, as root. Other faults are in test_faults.py."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import QUICK, write_lines
from test_faults import (
    PIPES,
    SETTINGS,
    assert_complete,
    assert_repetition_completes,
    command,
    many,
    scheduler,
    wait_until,
    worker,
)
from test_resume import committed

from amex.features import open_store

__all__ = ["many"]  # a fixture
pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(600)]


def sh(line: str) -> None:
    """Run a system command; skip the test if it is not permitted."""
    done = subprocess.run(line.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{line}: {done.stderr.strip() or 'not possible here'}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of one megabyte."""
    if os.geteuid():
        pytest.skip("mounting wants root")
    path = tmp_path / "disk"
    path.mkdir()
    sh(f"mount -t tmpfs -o size=1m tmpfs {path}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=False)


def test_a_full_disk_ends_the_run_with_a_one_line_error_and_loses_nothing(many: Path, disk: Path) -> None:
    store = disk / "s.zarr"
    run = subprocess.Popen(command(many, store), env=SETTINGS, **PIPES)
    wait_until(lambda: len(committed(store)) >= 2)
    (disk / "filler").write_bytes(b"\0" * (shutil.disk_usage(disk).free - 8192))
    output, errors = run.communicate(timeout=200)
    assert run.returncode == 1
    assert "No space left on device" in output + errors
    assert "Traceback" not in errors
    committed_parts = committed(store)
    assert len(committed_parts) >= 2
    (disk / "filler").unlink()
    assert_repetition_completes(many, store)
    assert committed_parts <= committed(store)


def test_a_disk_too_full_for_a_fetched_video_ends_the_run_with_a_one_line_error(
    many: Path, disk: Path, tmp_path: Path
) -> None:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=many)
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    clips = ({"clip_id": path.name, "video": path.name} for path in sorted(many.iterdir()))
    manifest, store = write_lines(tmp_path / "m.jsonl", *clips), tmp_path / "s.zarr"
    least = min(path.stat().st_size for path in many.iterdir() if path.stat().st_size)
    (disk / "filler").write_bytes(b"\0" * (shutil.disk_usage(disk).free - least // 2))
    own = [
        "--manifest",
        manifest,
        "--videos",
        f"http://127.0.0.1:{http.server_port}",
        "--store",
        store,
        "--part-clips",
        1,
    ]
    line = [str(word) for word in (sys.executable, "-m", "amex.cli", "extract", *own, "--device", "cpu", *QUICK)]
    full = subprocess.run(line, env={**SETTINGS, "TMPDIR": str(disk)}, timeout=200, check=False, **PIPES)
    assert full.returncode == 1, full.stderr
    assert f"{disk}" in full.stdout + full.stderr
    assert "name a larger disk with TMPDIR" in full.stdout + full.stderr
    assert not open_store(store)["r2plus1d_18"].failures
    (disk / "filler").unlink()
    roomy = subprocess.run(line, env={**SETTINGS, "TMPDIR": str(disk)}, timeout=200, check=False, **PIPES)
    http.shutdown()
    assert roomy.returncode == 3, roomy.stderr
    assert_complete(store)


def test_a_store_that_cannot_be_written_is_a_one_line_error(many: Path, disk: Path) -> None:
    store = disk / "s.zarr"
    assert_repetition_completes(many, store, "--limit", 8)
    (store / "r2plus1d_18" / "commits").rename(store / "kept")
    sh(f"mount -o remount,ro {disk}")
    run = subprocess.run(command(many, store), env=SETTINGS, timeout=200, check=False, **PIPES)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert str(store) in line
    assert "Read-only file system" in line
    sh(f"mount -o remount,rw {disk}")
    (store / "kept").rename(store / "r2plus1d_18" / "commits")
    assert_complete(store)


@contextmanager
def other_machine() -> Iterator[tuple[str, str, str]]:
    """A network namespace with a virtual cable to this one: its name, the local address, and the local interface."""
    if os.geteuid():
        pytest.skip("network namespaces want root")
    number = os.getpid() % 200
    name, here = f"amex{number}", f"10.213.{number}.1"
    sh(f"ip netns add {name}")
    try:
        sh(f"ip link add {name}a type veth peer name {name}b netns {name}")
        sh(f"ip addr add {here}/24 dev {name}a")
        sh(f"ip link set {name}a up")
        sh(f"ip -n {name} addr add 10.213.{number}.2/24 dev {name}b")
        sh(f"ip -n {name} link set {name}b up")
        sh(f"ip -n {name} link set lo up")
        yield name, here, f"{name}a"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


def test_a_worker_cut_off_from_the_scheduler_causes_a_repetition_but_no_damage(many: Path, tmp_path: Path) -> None:
    """The worker continues to write its part, which another worker gets meanwhile: both reach the store."""
    store = tmp_path / "s.zarr"
    with other_machine() as (name, address, cable), scheduler() as (local, _):
        elsewhere = local.replace("127.0.0.1", address)
        with worker(elsewhere, "ip", "netns", "exec", name):
            run = subprocess.Popen(command(many, store, "--cluster", local), env=SETTINGS, **PIPES)
            wait_until(lambda: len(committed(store)) >= 1)
            sh(f"ip link set {cable} down")
            before = len(committed(store))
            time.sleep(3)
            with worker(local):
                _, errors = run.communicate(timeout=300)
            assert run.returncode == 3, errors
            assert before < 8
            assert_complete(store)
