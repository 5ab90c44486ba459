"""Attacks by files, names and networks fail. docs/concepts/reliability.md lists these and other attempts."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import extract
from distributed import Client, Security
from videos import encode

from amex.extract.run import keys
from amex.extract.run.cluster import check_scheduler, local
from amex.features import open_store

ROOT = Path(__file__).parents[1]
PACKAGES = ("", "extract", "features", "manifests", "train", "benchmarks")


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Yield every call in the code: its place, the dotted name of the function, and the call."""
    for path in (path for package in PACKAGES for path in (ROOT / package).glob("**/*.py" if package else "*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(word.value) for word in call.keywords if word.arg == name), None)


def test_no_call_unpickles_evaluates_or_starts_a_shell() -> None:
    called = set()
    for place, name, call in calls():
        called.add(name)
        assert name not in ("eval", "exec", "os.system", "os.popen", "subprocess.getoutput"), place
        # One benchmark requires pickled answers. amex writes such files and never reads them.
        unpickles = name.split(".")[0] in ("pickle", "cPickle", "dill", "joblib", "marshal", "shelve")
        assert name == "pickle.dump" or not unpickles, place
        assert name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"), place
        assert not any(word.arg == "shell" for word in call.keywords), place
        assert keyword(call, "trust_remote_code") in (None, False), place  # else transformers may ask
        if name == "torch.load":
            assert keyword(call, "weights_only") is True, place
        if name in ("np.load", "numpy.load"):
            assert keyword(call, "allow_pickle") is False, place
    assert {"torch.load", "np.load", "yaml.safe_load", "subprocess.Popen"} <= called


def test_the_name_of_a_video_is_never_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    names = [
        "$(touch pwned).mp4",
        "a;touch pwned.mp4",
        "`touch pwned`.mp4",
        "-y -f null.mp4",
        "a b'\"|c.mp4",
        "%s{0}.mp4",
    ]
    for name in names:
        encode(folder / name, frames=20)
    monkeypatch.chdir(tmp_path)
    extract(folder, tmp_path / "s.zarr", "local")
    assert sorted(open_store(tmp_path / "s.zarr")["r2plus1d_18"]) == sorted(names)
    assert not list(tmp_path.rglob("pwned"))


def test_a_local_run_listens_only_on_loopback() -> None:
    own = psutil.Process()
    before = {connection.laddr for connection in own.net_connections() if connection.status == psutil.CONN_LISTEN}
    with local(1) as workers:
        workers.client.wait_for_workers(1)
        processes = [own, *own.children(recursive=True)]
        listening = [c.laddr for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert len(listening) >= 3  # scheduler, nanny and worker
        assert {address.ip for address in listening if address not in before} == {"127.0.0.1"}


def test_a_reachable_scheduler_accepts_no_connection_without_its_keys(tmp_path: Path) -> None:
    address_file = tmp_path / "jobs" / "scheduler.json"
    with local(1, address_file=address_file) as workers:
        address = workers.client.scheduler.address
        assert address.startswith("tls://")
        for path in address_file.parent.glob("*.pem"):
            assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises((OSError, TypeError)):
            asyncio.run(check_scheduler(address, Security()))
        with pytest.raises(OSError):
            asyncio.run(check_scheduler(address.replace("tls://", "tcp://"), Security()))
        with pytest.raises(OSError):
            asyncio.run(check_scheduler(address, keys.temporary_security(tmp_path / "other")))
        own = (address_file.parent / f"{name}.pem" for name in keys.KEYS)
        with Client(address, security=keys.security_of(*own), timeout="10s", set_as_default=False) as client:
            assert client.submit(sum, [1, 2]).result(timeout=30) == 3
