"""Weights are the requested ones, verified, cached, and cannot run code."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from amex.extract.encoders import weights
from amex.extract.encoders.i3d import InceptionI3D
from amex.extract.encoders.networks import NETWORKS
from amex.extract.encoders.weights import (
    FromHub,
    Published,
    UserSupplied,
    WeightsError,
    digest,
    load,
    weights_file,
)
from amex.foreign import file_sha256


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A local web server: its address, its folder, and the requested paths."""
    folder = tmp_path / "served"
    folder.mkdir()
    requested: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            requested.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder, requested
        httpd.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))


def published(url: str, sha256: str) -> Published:
    return Published(url=url, sha256=sha256, licence="none", source="a test")


def test_published_weights_are_downloaded_once_and_checked(server: tuple[str, Path, list[str]]) -> None:
    base, folder, requested = server
    torch.save(small().state_dict(), folder / "w.pth")
    entry = published(f"{base}/w.pth", file_sha256(folder / "w.pth", WeightsError))
    path = weights_file("default", entry)
    assert weights_file("default", entry) == path
    assert requested == ["/w.pth"]
    load(small, path, (3, 8, 8))
    Path(path).write_bytes(b"someone else's")
    with pytest.raises(WeightsError, match=r"the sha256 of .* differs"):
        weights_file("default", entry)


def test_a_download_with_another_digest_is_refused_and_deleted(server: tuple[str, Path, list[str]]) -> None:
    base, folder, _ = server
    (folder / "w.pth").write_bytes(b"tampered")
    entry = published(f"{base}/w.pth", "0" * 64)
    with pytest.raises(WeightsError, match="invalid hash"):
        weights_file("default", entry)
    assert not entry.path.exists()


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"cannot download .*Not a directory"):
        weights_file("default", published("http://127.0.0.1:9/w.pth", "00"))


def test_without_a_network_the_error_says_what_to_do(server: tuple[str, Path, list[str]]) -> None:
    entry = published("http://127.0.0.1:9/w.pth", "00")
    with pytest.raises(WeightsError) as caught:
        weights_file("default", entry)
    for words in ("cannot download http://127.0.0.1:9/w.pth", str(entry.path), "--weights STREAM=FILE", "random:0"):
        assert words in str(caught.value)


def test_every_network_has_a_published_default_with_a_digest_or_is_not_downloaded() -> None:
    for network in NETWORKS.values():
        assert network.published.licence
        assert network.published.source
        if isinstance(network.published, UserSupplied):
            with pytest.raises(WeightsError, match="amex does not download"):
                network.published.fetch()
            continue
        if isinstance(network.published, FromHub):  # the hub has a digest of every file
            continue
        if isinstance(network.published, Published):
            assert network.published.url.startswith("https://")
        assert len(network.published.sha256) >= 8
        assert int(network.published.sha256, 16)


def test_a_seed_gives_the_same_network_in_every_process() -> None:
    assert digest("random:1") == digest("random:1") != digest("random:2")
    first, second = (load(small, "random:1", (3, 8, 8)).state_dict() for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
    before = torch.get_rng_state()
    load(small, "random:1", (3, 8, 8))
    assert torch.equal(before, torch.get_rng_state())


def test_the_digest_of_a_seed_needs_no_network_and_covers_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    here = digest("random:1")
    monkeypatch.setattr(weights, "version", lambda library: "0.0")
    assert digest("random:1") != here
    monkeypatch.undo()
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape: randn(*shape) + 1)
    assert digest("random:1") != here


def test_a_model_is_loaded_once_per_process_and_the_oldest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_cache", OrderedDict())
    monkeypatch.setattr(weights, "MAX_CACHED", 2)
    loaded: list[str] = []

    def model(key: str) -> list[str]:
        return weights.cached(key, lambda: loaded.append(key) or [key])

    assert model("a") is model("a")
    model("b")
    model("a")
    model("c")  # replaces b, which was used least recently
    model("a")
    assert loaded == ["a", "b", "c"]
    with pytest.raises(ZeroDivisionError):
        weights.cached("d", lambda: 1 / 0)
    assert model("a") == ["a"]


@pytest.mark.parametrize("choice", ["random:", "random:x", "random:-1", "nowhere.pth", ""])
def test_invalid_weights_are_refused(choice: str) -> None:
    with pytest.raises(WeightsError):
        weights_file(choice, None)


def test_the_error_for_another_networks_checkpoint_names_the_parameter(tmp_path: Path) -> None:
    for state, words in [
        ({}, "lacks 0.weight"),
        ({**small().state_dict(), "fc.bias": torch.zeros(1)}, "unknown fc.bias"),
        ({**small().state_dict(), "0.weight": torch.zeros(1)}, "another shape for 0.weight"),
        ({"x": 1}, "does not contain a state dict"),
    ]:
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=words):
            load(small, str(tmp_path / "w.pth"), (3, 8, 8))
    (tmp_path / "w.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match="not a checkpoint"):
        load(small, str(tmp_path / "w.pth"), (3, 8, 8))


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"0.weight": Evil()}, tmp_path / "w.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("w.pth", "old.pth"):
        with pytest.raises(WeightsError, match=r"not a checkpoint"):
            load(small, str(tmp_path / name), (3, 8, 8))
    assert not (tmp_path / "ran").exists()


def test_a_worker_refuses_other_weights_than_those_at_the_start_of_the_run() -> None:
    from amex.errors import AmexError
    from amex.extract.encoders.registry import plan_stream

    plan = plan_stream("x", "r2plus1d_18", weights="random:0", device="cpu", precision="fp32")
    with pytest.raises(AmexError, match="differ between this worker and the start of the run"):
        dataclasses.replace(plan, model=dataclasses.replace(plan.model, weights="random:1")).encoder("cpu")


def test_the_public_i3d_checkpoint_loads_without_its_missing_counters(tmp_path: Path) -> None:
    state = {k: v for k, v in InceptionI3D().state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(state) == 344 - 57
    torch.save(state, tmp_path / "rgb_imagenet.pt")
    loaded = load(InceptionI3D, str(tmp_path / "rgb_imagenet.pt"), (3, 9, 224, 224)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    state.pop("Mixed_5c.b0.bn.running_mean")
    torch.save(state, tmp_path / "rgb_imagenet.pt")
    with pytest.raises(WeightsError, match=r"lacks Mixed_5c\.b0\.bn\.running_mean"):
        load(InceptionI3D, str(tmp_path / "rgb_imagenet.pt"), (3, 9, 224, 224))
