"""Commands answer quickly: wrong usage is refused before torch is imported, and workers start beside the planning."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import QUICK, amex, extract_options

from amex.errors import AmexError

command_line = importlib.import_module("amex.cli.extract")  # the attribute of amex.cli is the command


# Wrong commands, and words of the answer. They run in a folder with an empty store, manifest and checkpoint.
REFUSED = {
    "extract --manifest none.jsonl --videos . --store s": "there is no manifest none.jsonl",
    "extract --manifest m.jsonl --store s": "give --videos",
    "extract --dataset folder --videos none --store s": "does not exist",
    "extract --dataset folder --store s": "--dataset folder needs --videos",
    "extract V --store s --weights random:0": "STREAM=VALUE",
    "extract V --store s --weights x=random:0": "no stream of this run",
    "extract V --store s --stream a=s3d --stream a=resnet152": "gives 'a' 2 times",
    "extract V --store s --stream nonsense": "unknown stream 'nonsense'",
    "extract V --store s --stream x=yolo:v8": "mmdet:WHICH",
    "extract V --store s --recipe nonsense": "unknown recipe 'nonsense'",
    "extract V --store s --set r2plus1d_18=3": "NAME.KEY=VALUE",
    "extract V --store s --partition 4/4": "K from 0 to N-1",
    "extract V --store s --partition a/b": "K from 0 to N-1",
    "extract V --store s --feeders 0": "0 is not in the range",
    "extract V --store s --part-minutes nan": "not a finite number",
    "extract V --store s --cluster slrm": "--cluster takes local",
    "extract V --store s --stream ../x=s3d": "cannot be a stream's name",
    "extract V --store s --device gpu": "unknown device 'gpu'",
    "extract V --store s --device cpu --workers-per-gpu 2": "use --workers N",
    "worker nowhere": "tcp://10.0.0.1:8786",
    "report none": "there is no checkpoint none",
    "report run --out page.html": "is a page: give a folder",
    "report run --videos none": "--videos none is not a folder",
    "eval none": "there is no checkpoint none",
    "eval run --store none": "there is no store none",
    "eval run --dataset nonsense": "unknown data set 'nonsense'",
    "eval run --ranks ranks.txt": "must end in .csv or .jsonl",
    "eval run --binary none.csv": "none.csv does not exist",
    "eval --official-hgr none": "--official-hgr none is not a folder",
    "moments none": "there is no checkpoint none",
    "moments run --submission x y": "writes qvhighlights and tvr",
    "search none word": "there is no store or run none; make a store with: amex extract FOLDER",
    "serve none --port 0": "there is no store or run none",
    "train nonsense": "nonsense",
    "train amenet": "missing: --store",
    "train amenet --store none": "there is no store none",
    "train amenet --store s.zarr --manifest none": "there is no manifest none",
    "train amenet --store s.zarr --manifest m.jsonl --set model.nonsense=3": "nonsense",
    "train export none --out x": "there is no checkpoint none",
    "ablate nonsense --work-dir x": "nonsense",
    "ablate amenet --work-dir x": "missing: --store",
    "ablate amenet --work-dir x --seeds a": "--seeds takes numbers",
    "configs nonsense": "nonsense",
    "datasets show nonsense": "unknown data set 'nonsense'",
    "manifest show none": "there is no manifest none",
    "manifest check m.jsonl --videos none": "--videos none is not a folder",
    "manifest stats m.jsonl --out x.doc": ".png, .svg",
    "manifest filter m.jsonl --store none --out x": "there is no store none",
    "features info none": "there is no store none",
    "features show none clip": "there is no store none",
    "features ls s.zarr --state absent": "needs --manifest",
    "features import none --store s": "none does not exist",
    "features export s.zarr x --out x --format hgr": "needs --manifest",
    "demo --real none": "does not exist",
}
RUN = """
import contextlib, io, json, shlex, sys
from amex.cli import main
for command, words in json.load(sys.stdin).items():
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main(shlex.split(command))
        except SystemExit as ended:
            assert ended.code in (1, 2), command
    assert words in errors.getvalue(), (command, errors.getvalue())
    heavy = {"torch", "mmengine", "transformers", "faiss", "distributed", "matplotlib"} & set(sys.modules)
    assert not heavy, (command, heavy)
"""


def test_wrong_commands_are_refused_before_heavy_imports(tmp_path: Path) -> None:
    for name in ("V/a.mp4", "run/best.pth", "s.zarr/zarr.json", "m.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    command, existing = [sys.executable, "-c", RUN], {*tmp_path.rglob("*")}
    done = subprocess.run(command, cwd=tmp_path, input=json.dumps(REFUSED), capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    assert {*tmp_path.rglob("*")} == existing


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
