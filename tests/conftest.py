"""Fixtures that tests share: one Dask cluster for the session, small videos, and the places of real data."""

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

# Torch reads these when it is first imported: here by the fixture `cluster`, or by a module of tests. Networks of tests
# are small, and threads that spin while they wait take the cores from the tests that run beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Machines are noisy: how long an example takes is no property of the code.
settings.register_profile("amex", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("amex")

# For processes that train together: NCCL gives no two of them one GPU. What they are compared with is on the CPU too.
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for the whole suite; none but this one for single files, and for tests that change the system."""
    whole = all(Path(argument).is_dir() for argument in config.args)
    return 2 if whole and config.option.markexpr != "system" else 0


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A temporary folder for this process and those it starts: tests look at what runs leave there."""
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
    """Outputs of the official programs that need the real clips."""
    return _real("parity", "AMEX_PARITY")


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a scheduler with one worker process, so that runs need not start one each."""
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
    """The server, its address and one's credentials being where programs look for them."""
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
    """The address of a bucket of its own."""
    import boto3
    from s3fs import S3FileSystem

    server.trouble = server.harm = lambda environ: None
    S3FileSystem.clear_instance_cache()
    bucket = f"bucket{uuid.uuid4().hex}"  # hypothesis seeds random anew
    boto3.client("s3", endpoint_url=server.url).create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


# A stream that is quick to compute and still is the real network: two frames a window, one window every 16 frames.
QUICK = ("--weights", "r2plus1d_18=random:0", "--set", "r2plus1d_18.frames=2", "--set", "r2plus1d_18.stride=16")


def amex(*arguments: Any) -> Result:
    """Runs the command line in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def extract(videos: Path, store: Path, cluster: str, *more: Any, code: int = 0) -> dict[str, Any]:
    """Runs ``amex extract --json`` on a folder, or on the --manifest among ``more``, and returns the result."""
    source = () if "--manifest" in more else ("--dataset", "folder")
    given = ("--videos", videos, "--store", store, "--cluster", cluster, "--device", "cpu", "--json")
    result = amex("extract", *source, *given, *(QUICK if "--weights" not in more else ()), *more)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code in (0, 3) else {"output": result.output}


def extract_options(*arguments: Any) -> ExtractOptions:
    """What ``amex extract`` makes of its command line."""
    given = ["--dataset", "folder", "--videos", "V", "--store", "s.zarr", *map(str, arguments)]
    return ExtractOptions(**main.commands["extract"].make_context("extract", given).params)


def write_lines(path: Path, *records: dict[str, Any] | str) -> Path:
    """Writes a manifest: records as JSON, strings as they are."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n")
    return path
