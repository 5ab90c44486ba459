"""Mistyped names get suggestions; ``python -m amex`` and completion are fast and work in any folder."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import amex, write_lines
from tiny import FRAMES, TINY, drawn_store, lines

from amex.errors import AmexError, did_you_mean, nearest
from amex.features import MissingClip, open_store
from amex.manifests import ManifestError, named
from amex.train.config import load_config

ROOT = Path(__file__).parents[1]


def started(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT.parent), str(Path(__file__).parent)])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | path | env, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with one stream, ``motion``."""
    return drawn_store(tmp_path_factory.mktemp("tiny"), {"motion": FRAMES})


def test_similar_names_are_suggested_in_any_case() -> None:
    assert nearest("VIDEO7.mp4", ["video7.mp4", "video71.mp4", "other.mp4"])[:2] == ["video7.mp4", "video71.mp4"]
    assert did_you_mean("tset", ["test", "train"]) == "; did you mean 'test'?"
    assert did_you_mean("x", ["test", "train"]) == ""
    assert did_you_mean("x" * 10_000_000, ["x" * 1000] * 1000) == ""
    assert did_you_mean("\x1b[2Ja.mp4", ["\x1b[2Jb.mp4"]) == r"; did you mean '\x1b[2Jb.mp4'?"


def test_suggestions_among_many_names_are_fast() -> None:
    names = [f"folder{i % 1000}/video_{i:07d}.mp4" for i in range(300_000)]
    begin = time.process_time()
    assert nearest("folder41/vidoe_0250041.mp4", names)[0] == "folder41/video_0250041.mp4"
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serch",), "No such command 'serch'. (Did you mean one of: 'search', 'serve'?)"),
        (("features", "sho"), "No such command 'sho'. Did you mean 'show'?"),
        (("info", "s.zarr"), "Did you mean 'main features info'?"),
        (("train", "amenet", "--stor", "s"), "'--store'"),
        (("streams", "--recipe"), "--recipes"),
    ],
)
def test_a_mistyped_command_or_option_gets_a_suggestion(arguments: tuple[str, ...], words: str) -> None:
    result = amex(*arguments)
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("features", "show", "S", "trian1", "--videos", "."), "did you mean 'train1' or 'train"),
        (("configs", "amenet_shape"), "did you mean 'amenet_shapes'"),
        (("features", "ls", "S", "motoin"), "no stream 'motoin' in S; there is motion; did you mean 'motion'?"),
        (("features", "rm", "S", "motoin", "--yes"), "did you mean 'motion'?"),
        (("features", "rm", "S", "motion", "vall1", "--yes"), "1 of 1 id not in motion: vall1; did you mean 'val1'"),
        (("train", "global", "--store", "S", "--manifest", "m.jsonl", "--work-dir", "w", "--set", "data.val=vall",
          "--set", "model.text=words"), "no clip of split 'vall'; it has test, train, val; did you mean 'val'?"),
    ],
)  # fmt: skip
def test_a_mistyped_clip_stream_or_split_gets_a_suggestion(
    arguments: tuple[str, ...], words: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.parent)
    result = amex(*(word if word != "S" else store.name for word in arguments))
    assert result.exit_code == 1
    assert words in result.output.replace(store.name, "S")
    assert "Traceback" not in result.output


def test_search_suggests_similar_clip_ids(store: Path, tmp_path: Path) -> None:
    manifest = write_lines(tmp_path / "m.jsonl", *lines())
    arguments = ("--store", store, "--manifest", manifest, "--work-dir", tmp_path / "w")
    settings = (word for setting in (*TINY, "train.epochs=1") for word in ("--set", setting))
    assert amex("train", "global", *arguments, *settings).exit_code == 0
    wrong = amex("search", tmp_path / "w", "--video", "trian3")
    assert wrong.exit_code == 1
    assert "clip 'trian3' is not among the 15 clips" in wrong.output
    assert "did you mean 'train3' or" in wrong.output


def test_suggestions_for_missing_clips_are_computed_lazily(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = open_store(store)["motion"]
    calls = []
    monkeypatch.setattr(
        "amex.features.schema.did_you_mean", lambda name, among: calls.append(name) or (name and "; near")
    )
    with pytest.raises(MissingClip) as caught:
        stream["trian3"]
    assert not calls
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert str(caught.value).endswith("extract it first; near")


def test_mistyped_data_sets_protocols_and_configurations_get_suggestions() -> None:
    with pytest.raises(ManifestError, match="did you mean 'youcook2'"):
        named("youcok2")
    with pytest.raises(ManifestError, match="did you mean '1k-A'"):
        named("msrvtt:1ka")
    with pytest.raises(AmexError, match="did you mean 'hgr_msrvtt'"):
        load_config("hgr_msrvt")


def test_python_m_amex_is_amex_wherever_it_is_started(tmp_path: Path) -> None:
    shown = started("-m", "amex", "--version", cwd=tmp_path)
    assert (shown.returncode, shown.stdout.split()[0]) == (0, "amex,")
    (tmp_path / "amex").symlink_to(ROOT)  # a checkout that is not installed, run from its parent folder
    command = [sys.executable, "-m", "amex", "streams", "--help"]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    assert subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("amex fea", {"features"}),
        ("amex features ver", {"verify"}),
        ("amex train amenet --st", {"--store", "--strict"}),
    ],
)
def test_completion_offers_what_fits_without_loading_torch(line: str, offered: set[str], tmp_path: Path) -> None:
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'mmengine', 'faiss', 'zarr', 'dask', 'distributed', 'av', 'decord', 'rapidfuzz'}\n"
        "atexit.register(lambda: print('loaded', *sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        "from amex.cli import main\n"
        "main(prog_name='amex')"
    )
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    completed = started("-c", code, cwd=tmp_path, _AMEX_COMPLETE="bash_complete", **words)
    assert {entry.partition(",")[2] for entry in completed.stdout.split()} == offered
    assert completed.stderr == "loaded\n"


@pytest.mark.slow
def test_a_wheel_has_what_python_m_amex_runs(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    source = tmp_path / "source"  # pip builds in place
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", "tests", "benchmarks", "build", "*.egg-info"))
    subprocess.run([*pip, str(source)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("amex-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"amex/__main__.py", "amex/cli/__init__.py"} <= names
    pages = [*(ROOT / "cli" / "page" / "static").iterdir(), *(ROOT / "train" / "pages").iterdir()]
    assert {f"amex/{page.relative_to(ROOT).as_posix()}" for page in pages} <= names
