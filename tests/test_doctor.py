"""``amex doctor``: what works is really tried, and what does not ends in a line that says what to do."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import amex

import amex as amex_package
from amex.cli.doctor import CHECKS, Finding, examine
from amex.cli.doctor.checks import Check

BY_FUNCTION = {check.function: check for check in CHECKS}


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs some of the checks, by their functions, and returns their findings by name."""

    def examined(*functions: str, folder: Path = Path(), bucket: str = "") -> dict[str, Finding]:
        chosen = [BY_FUNCTION[function] for function in functions]
        monkeypatch.setattr(sys.modules["amex.cli.doctor.checks"], "CHECKS", chosen)
        return {finding.what: finding for finding in examine(folder, bucket)}

    return examined


def module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that stands before the installed one of its name, in this process's children."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))


@pytest.mark.slow
def test_this_machine_is_well_and_json_says_so(tmp_path: Path) -> None:
    begin = time.monotonic()
    result = amex("doctor", "--store", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    assert time.monotonic() - begin < 120  # 10 s on two idle cores
    record = json.loads(result.stdout)
    assert record["ok"]
    states = {check["what"]: check["state"] for check in record["checks"]}
    assert {"Python", "torch", "torchvision", "decoding by PyAV", "training", "Dask", "small files"} <= states.keys()
    assert all(check["state"] == "ok" for check in record["checks"] if check["essential"])
    assert all(check["remedy"] for check in record["checks"] if check["state"] != "ok")
    assert all(check["found"] for check in record["checks"])
    assert "broken" not in states.values()
    assert not list(tmp_path.iterdir())


def test_frames_of_every_codec_come_out_right_by_the_decoder_that_amex_would_take(only: Any) -> None:
    findings = only("video", "decord")
    assert "H.264, HEVC, VP9, AV1, MPEG-4" in findings["decoding by PyAV"].found
    assert "H.264, HEVC, VP9, AV1; MPEG-4 goes to PyAV" in findings["decoding by decord"].found


def test_a_decoder_whose_frames_are_wrong_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from amex.cli.doctor import video
    from amex.cli.doctor.findings import Subject

    monkeypatch.setattr(video, "CODECS", {"H.264": ("libx264", "mp4"), "X": ("libnothing", "mp4")})
    (sound,) = (finding for finding in video.video(Subject(folder=Path())) if "PyAV" in finding.what)
    assert "not tried: X, which cannot be made here" in sound.found
    monkeypatch.setattr(video, "NEAR", -1)
    (broken,) = (finding for finding in video.video(Subject(folder=Path())) if "PyAV" in finding.what)
    assert (broken.state, broken.essential) == ("broken", True)
    assert "the decoded frames differ from the encoded ones" in broken.found


def test_what_cannot_be_imported_says_what_to_install(
    only: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path / "m", "decord", "raise ImportError('libav.so.0: cannot open shared object file')", monkeypatch)
    finding = only("decord")["decoding by decord"]
    assert finding.state == "broken"
    assert finding.found == "ImportError: libav.so.0: cannot open shared object file"
    assert "pip install --force-reinstall decord2" in finding.remedy
    assert not finding.essential  # PyAV decodes in its place


def test_a_check_that_crashes_or_hangs_costs_its_own_lines_alone(
    only: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path / "m", "torch", "import os; os.abort()", monkeypatch)
    module(tmp_path / "m", "decord", "import time; print('{}', flush=True); time.sleep(1000)", monkeypatch)
    monkeypatch.setattr(sys.modules["amex.cli.doctor.checks"], "LIMIT", 3.0)
    begin = time.monotonic()
    findings = only("machine", "computing", "decord")
    assert time.monotonic() - begin < 60
    assert findings["open files"].state == "ok"
    crashed, hung = findings["torch"], findings["decoding by decord"]
    assert (crashed.state, crashed.found, crashed.essential) == ("broken", "ended by SIGABRT", True)
    assert (hung.state, hung.found) == ("broken", "no answer within 3 seconds")
    assert "'amex.cli.doctor' 'video' 'decord'" in hung.remedy


def test_the_amex_that_is_examined_is_the_one_that_examines(only: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert only("packages")["amex"].found.endswith(f", {Path(amex_package.__file__).resolve().parent}")


def test_something_essential_that_is_broken_is_exit_status_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [BY_FUNCTION["folder"]]
    monkeypatch.setattr(sys.modules["amex.cli.doctor.checks"], "CHECKS", checks)
    monkeypatch.setattr(sys.modules["amex.cli.doctor"], "CHECKS", checks)
    well = amex("doctor", "--store", tmp_path / "not" / "yet.zarr")
    assert well.exit_code == 0, well.output
    assert "the essential parts work; 0 optional parts missing or broken" in well.output
    for wrong in ("/sys", "/dev/null"):
        result = amex("doctor", "--store", wrong)
        assert result.exit_code == 3
        assert "-> choose a folder that you may write to, with --store" in result.output
        assert "amex cannot work here: the folder of the store" in result.stderr
        assert json.loads(amex("doctor", "--store", wrong, "--json").stdout)["ok"] is False
    assert amex("doctor", "--store", "s3://b/x").exit_code == amex("doctor", "--s3", "b").exit_code == 2


def test_a_disk_that_is_full_is_broken(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amex.cli.doctor", "places", "folder", str(tmp_path), ""]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def quota() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env, preexec_fn=quota)
    findings = {entry["what"]: entry for entry in map(json.loads, run.stdout.splitlines())}
    assert findings["the disk's speed"]["state"] == findings["small files"]["state"] == "broken"
    assert "File too large" in findings["small files"]["found"]
    assert not list(tmp_path.iterdir())


def test_packages_that_are_missing_or_old_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from amex.cli.doctor import packages
    from amex.cli.doctor.findings import Subject

    wanted = ["click>=1", "zarr>=1000", "nowhere-to-be-found", "windows-only; sys_platform == 'win32'"]
    wanted += ["no-such-thing>=1; extra == 'more'", "no-such-tool; extra == 'dev'"]
    monkeypatch.setattr(packages, "requires", lambda name: wanted)
    findings = {finding.what: finding for finding in packages.packages(Subject(folder=Path()))}
    assert findings.keys() == {"Python", "amex", "requirements", "amex[more]"}
    assert findings["amex"].found.endswith(f", {Path(amex_package.__file__).parent}")
    assert findings["requirements"].state == "broken"
    assert findings["requirements"].remedy == "pip install 'zarr>=1000' 'nowhere-to-be-found'"
    assert findings["amex[more]"].state == "missing"
    assert findings["amex[more]"].remedy == "pip install 'amex[more]'"


def test_servers_that_never_answer_hold_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from amex.cli.doctor import models

    monkeypatch.setattr(models, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        finding = models._network(set())
    assert (finding.state, finding.essential) == ("missing", False)
    assert address in finding.found
    assert "only weights on this disk can be used" in finding.remedy
    assert threading.active_count() < 50


def test_every_check_has_its_function() -> None:
    import importlib

    for check in CHECKS:
        assert isinstance(check, Check)
        assert getattr(importlib.import_module(f"amex.cli.doctor.{check.module}"), check.function).__doc__
