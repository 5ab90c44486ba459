"""A run starts quickly: wrong usage is told before torch is imported, and workers start beside the planning."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import QUICK, amex, extract_options

from amex.errors import AmexError

command_line = importlib.import_module("amex.cli.extract")  # the attribute of amex.cli is the command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--manifest", "none.jsonl", "--videos", "."], "cannot read the manifest"),
        (["--dataset", "folder", "--videos", "none"], "does not exist"),
        (["--dataset", "folder"], "--dataset folder needs --videos"),
        (["--dataset", "folder", "--videos", ".", "--weights", "random:0"], "STREAM=VALUE"),
        (["--dataset", "folder", "--videos", ".", "--weights", "x=random:0"], "no stream of this run"),
        (["--dataset", "folder", "--videos", ".", "--stream", "a=s3d", "--stream", "a=resnet152"], "gives 'a' 2 times"),
        (["--dataset", "folder", "--videos", ".", "--set", "r2plus1d_18=3"], "NAME.KEY=VALUE"),
        (["--dataset", "folder", "--videos", ".", "--partition", "4/4"], "K from 0 to N-1"),
        (["--dataset", "folder", "--videos", ".", "--partition", "a/b"], "K from 0 to N-1"),
        (["--dataset", "folder", "--videos", ".", "--feeders", "0"], "0 is not in the range"),
        (["--dataset", "folder", "--videos", ".", "--part-minutes", "nan"], "not a finite number"),
        (["--dataset", "folder", "--videos", ".", "--cluster", "slrm"], "--cluster takes local"),
        (["--dataset", "folder", "--videos", ".", "--stream", "../x=s3d"], "cannot be a stream's name"),
        (["--dataset", "folder", "--videos", ".", "--device", "gpu"], "unknown device 'gpu'"),
        (["--dataset", "folder", "--videos", ".", "--device", "cpu", "--workers-per-gpu", "2"], "use --workers N"),
    ],
)
def test_wrong_usage_is_told_before_torch_is_imported(arguments: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    code = (
        "import sys\nfrom amex.cli import main\n"
        "try: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules, 'torch is imported'"
    )
    command = [sys.executable, "-c", code, "extract", "--store", "s.zarr", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2), done.stderr
    assert words in done.stderr
    assert "torch is imported" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def workers_here() -> list[psutil.Process]:
    """Worker processes that this one has started; another test module's cluster is one too."""
    return [child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]


def test_workers_start_before_the_plan_and_end_with_a_plan_that_fails(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, during = workers_here(), list[psutil.Process]()

    def fails(*given: object) -> list:
        during.extend(set(workers_here()) - set(before))
        raise AmexError("these weights are nowhere")

    monkeypatch.setattr(command_line, "stream_plans", fails)
    options = ("--dataset", "folder", "--videos", clips, "--store", tmp_path / "s.zarr", "--device", "cpu", *QUICK)
    refused = amex("extract", *options)
    assert refused.exit_code == 1
    assert "Error: these weights are nowhere" in refused.output
    assert len(during) == 1
    assert not set(workers_here()) - set(before)
    assert not list(tmp_path.iterdir())


def test_no_worker_starts_where_there_may_be_nothing_to_do(clips: Path, tmp_path: Path) -> None:
    options = extract_options("--store", tmp_path / "s.zarr", "--device", "cpu")
    items = command_line.clips_of(extract_options("--videos", clips))
    (tmp_path / "s.zarr" / "r2plus1d_18").mkdir(parents=True)
    (tmp_path / "s.zarr" / "r2plus1d_18" / "spec.json").touch()
    for given, clips_there in ((options, items), (extract_options("--dry-run"), items), (extract_options(), [])):
        with command_line.started(given, "local", clips_there) as cluster:
            assert cluster == "local"
