"""Shared fixtures: one Dask cluster for the session, small videos, the folders of real data."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, settings
from videos import encode

from amex.cli import main
from amex.cli.options import ExtractOptions

# Torch reads these when it is first imported, by the fixture `cluster` or by a test module. The networks of tests are
# small, and threads that spin while they wait slow down the tests that run at the same time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The duration of an example depends on the load of the machine.
settings.register_profile("amex", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("amex")

# For distributed training: NCCL does not let two processes share a GPU. The run to compare with is on the CPU too.
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return 2 for the whole suite; 0 (this process) for single files and for tests that change the system."""
    full_suite = all(Path(argument).is_dir() for argument in config.args)
    return 2 if full_suite and config.option.markexpr != "system" else 0


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set a temporary folder for this process and its children: tests check which files runs leave there."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield


def _real(name: str, variable: str) -> Path:
    path = Path(os.environ.get(variable, SHARED / name))
    if not path.is_dir():
        pytest.skip(f"no {path}; set {variable} to a folder laid out like it")
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real clips and annotations that are not part of the project."""
    return _real("data", "AMEX_REAL_DATA")


@pytest.fixture(scope="session")
def parity() -> Path:
    """Outputs of the official programs on the real clips."""
    return _real("parity", "AMEX_PARITY")


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a scheduler with one worker process, which runs share."""
    from amex.extract.run.cluster import local

    with local(1) as workers:
        yield workers.client.scheduler.address


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four numbered videos of 40 frames in different codecs."""
    folder = tmp_path_factory.mktemp("clips")
    encode(folder / "a.mp4", frames=40)
    encode(folder / "b.webm", frames=40, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})
    encode(folder / "c.avi", frames=40, codec="mpeg4", options={"b": "4000000"})
    (folder / "deep" / "er").mkdir(parents=True)
    encode(folder / "deep" / "er" / "d.mkv", frames=40)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """An S3 server; the environment variables have its address and the credentials."""
    from s3_server import Server
    from stand_in import AT_ONCE

    settings = {"ACCESS_KEY_ID": "me", "SECRET_ACCESS_KEY": "mine", "DEFAULT_REGION": "us-east-1"}
    server = Server()
    with AT_ONCE, pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in {**settings, "ENDPOINT_URL": server.url}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield server
    server.http.shutdown()


@pytest.fixture
def s3(server: Any) -> str:
    """The address of a new bucket."""
    import boto3
    from s3fs import S3FileSystem

    server.trouble = server.harm = lambda environ: None
    S3FileSystem.clear_instance_cache()
    bucket = f"bucket{uuid.uuid4().hex}"  # not from random, which hypothesis seeds
    boto3.client("s3", endpoint_url=server.url).create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


# The real network, quick to compute: two frames a window, one window every 16 frames.
QUICK = ("--weights", "r2plus1d_18=random:0", "--set", "r2plus1d_18.frames=2", "--set", "r2plus1d_18.stride=16")


def amex(*arguments: Any) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def extract(videos: Path, store: Path, cluster: str, *more: Any, code: int = 0) -> dict[str, Any]:
    """Run ``amex extract --json`` on a folder, or on the --manifest among ``more``; return the result."""
    source = () if "--manifest" in more else ("--dataset", "folder")
    options = ("--videos", videos, "--store", store, "--cluster", cluster, "--device", "cpu", "--json")
    result = amex("extract", *source, *options, *(QUICK if "--weights" not in more else ()), *more)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code in (0, 3) else {"output": result.output}


def extract_options(*arguments: Any) -> ExtractOptions:
    """Return the options that ``amex extract`` parses from its command line."""
    words = ["--dataset", "folder", "--videos", "V", "--store", "s.zarr", *map(str, arguments)]
    return ExtractOptions(**main.commands["extract"].make_context("extract", words).params)


def write_lines(path: Path, *records: dict[str, Any] | str) -> Path:
    """Write a manifest: records as JSON, strings unchanged."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n")
    return path
