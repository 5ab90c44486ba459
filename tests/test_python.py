"""``import amex``: its functions do what the commands do, and nothing heavy is loaded before it is used."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from dask.system import CPU_COUNT
from tiny import TINY, tiny_store

import amex
from amex import api, extracting
from amex.errors import AmexError
from amex.manifests import read_manifest

QUICK: dict[str, Any] = {"weights": "random:0", "settings": {"frames": 2, "stride": 16}}
NETWORK = "r2plus1d_18"
MANY = {name: {NETWORK: value} for name, value in QUICK.items()}
CPU = {"device": "cpu", "precision": "fp32"}


def test_importing_amex_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'zarr', 'numpy', 'dask', 'click'}"
    code = f"import sys, amex, amex.extract\nassert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_lists_every_name_with_its_documentation() -> None:
    assert set(amex.__all__) <= set(dir(amex))
    for name in amex.__all__:
        assert getattr(amex, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'extrcat'"):
        _ = amex.extrcat  # type: ignore[attr-defined]
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        help(amex)
    for name in ("open_store", "extract", "extract_file", "fit", "load", "search"):
        assert f"{name}(" in text.getvalue()
        assert inspect.getdoc(getattr(amex, name)).splitlines()[0] in text.getvalue()  # type: ignore[union-attr]


def test_the_package_extract_is_called_as_the_function() -> None:
    from amex.extract import encoders  # noqa: F401

    assert inspect.ismodule(amex.extract)
    assert inspect.signature(amex.extract) == inspect.signature(api.extract)
    assert (amex.extract.__doc__ or "").startswith("Extract missing features")
    with pytest.raises(AmexError, match="streams is empty"):
        amex.extract("my_videos", [], "s.zarr")


def test_the_package_extract_is_pickled_by_its_name() -> None:
    assert cloudpickle.loads(cloudpickle.dumps(amex.extract)) is amex.extract
    assert copy.deepcopy(amex.extract) is amex.extract


@pytest.fixture(scope="module")
def store(clips: Path, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> amex.Store:
    path = tmp_path_factory.mktemp("python") / "s.zarr"
    return amex.extract(clips, NETWORK, path, cluster=cluster, quiet=True, **MANY, **CPU)


@pytest.mark.slow
def test_extract_file_gives_the_rows_of_the_store(
    store: amex.Store, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amex.extract.run.part.THREADS", CPU_COUNT)  # as many as the worker has: sums are rounded alike
    rows = amex.extract_file(clips / "a.mp4", NETWORK, **QUICK, **CPU)
    stored = store[NETWORK]["a.mp4"]
    assert rows.arrays.keys() == stored.arrays.keys()
    for name, array in stored.arrays.items():
        assert array.dtype == rows[name].dtype
        assert np.array_equal(array, rows[name]), name
    assert amex.extract_file(clips / "a.mp4", NETWORK, start=0.5, **QUICK, **CPU).times[0, 0] >= 0.5


@pytest.mark.slow
def test_a_file_that_cannot_be_decoded_is_an_error_in_memory_and_a_warning_in_a_store(
    cluster: str, tmp_path: Path
) -> None:
    broken = tmp_path / "v" / "broken.mp4"
    broken.parent.mkdir()
    broken.touch()
    with pytest.raises(AmexError, match=r"broken\.mp4: open: "):
        amex.extract_file(broken, NETWORK, **QUICK, **CPU)
    with pytest.raises(AmexError, match="text_bert reads captions, not videos"):
        amex.extract_file(broken, "text_bert")
    with pytest.warns(UserWarning, match="1 clip failed in r2plus1d_18"):
        store = amex.extract([broken], NETWORK, tmp_path / "s.zarr", cluster=cluster, quiet=True, **MANY, **CPU)
    assert store[NETWORK].failures["broken.mp4"].stage == "open"
    assert store[NETWORK].failures["broken.mp4"].clip_id in (tmp_path / "s.jsonl").read_text()


@pytest.mark.slow
def test_videos_may_be_a_folder_files_a_manifest_or_clips(store: amex.Store, clips: Path, cluster: str) -> None:
    """All of them mean the same clips, which the store has: nothing is computed."""
    before = sorted(store.path.rglob("*"))
    manifest = store.path.with_suffix(".jsonl")
    files = [clips / name for name in store[NETWORK]]
    for videos, more in (
        (clips, {}),
        (str(clips), {}),
        (files, {}),
        (files[0], {"folder": clips}),
        (manifest, {}),
        (read_manifest(manifest), {"folder": clips}),
    ):
        again = amex.extract(videos, {NETWORK: NETWORK}, store.path, cluster=cluster, quiet=True, **more, **MANY, **CPU)
        assert list(again[NETWORK]) == list(store[NETWORK])
    assert sorted(store.path.rglob("*")) == before


def test_listed_clips_are_added_to_the_manifest_of_their_folder(tmp_path: Path) -> None:
    store, beside = tmp_path / "s.zarr", tmp_path / "s.jsonl"

    def remember(*clips: amex.Clip, videos: Path, add: bool) -> dict[str, amex.Clip]:
        extracting.remember(store, clips, manifest=None, videos=videos, beside=beside, say=print, add=add)
        return {clip.clip_id: clip for clip in read_manifest(beside)}

    annotations = {"captions": ("a dog",), "split": "train", "extras": {"k": 1}}
    remember(amex.Clip(clip_id="a", video="a.mp4", **annotations), videos=tmp_path / "v", add=False)
    clips = remember(
        amex.Clip(clip_id="b", video="b.mp4"),
        amex.Clip(clip_id="a", video="a.mp4", end=2.0),
        videos=tmp_path / "v",
        add=True,
    )
    assert clips == {
        "a": amex.Clip(clip_id="a", video="a.mp4", end=2.0, **annotations),
        "b": amex.Clip(clip_id="b", video="b.mp4"),
    }
    assert list(remember(amex.Clip(clip_id="c", video="c.mp4"), videos=tmp_path / "other", add=True)) == ["c"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"streams": "r2plus1d_81"}, "r2plus1d_81.*did you mean 'r2plus1d_18'"),
        ({"streams": ["x", "x"]}, "names one twice"),
        ({"streams": NETWORK, "presets": {"x": "y"}}, "presets names 'x', which is no stream of this call"),
        ({"videos": ["a.mp4", amex.Clip(clip_id="a", video="a")]}, "all files or all clips: a.mp4 is no Clip"),
        ({"videos": ["/a/b.mp4"], "folder": "/c"}, "/a/b.mp4 is not below the folder of the videos, /c"),
        ({"videos": [amex.Clip(clip_id="a", video="a")]}, "give the folder that the videos are in: folder="),
        ({"videos": []}, "no videos to extract"),
        ({"videos": "nowhere.jsonl"}, "there is no folder of videos, video or manifest nowhere.jsonl"),
        ({"videos": "my_vidoes"}, "there is no folder of videos, video or manifest my_vidoes"),
        ({"videos": "nowhere.mp4"}, "there is no video nowhere.mp4"),
        ({"videos": ["nowhere.mp4"]}, "there is no video nowhere.mp4"),
        ({"decoder": "ffmpeg"}, "unknown decoder 'ffmpeg': use auto, pyav, decord, nvdec"),
        ({"precision": "fp64"}, "unknown precision 'fp64': use auto, fp32, bf16, fp16"),
        ({"workers": 0}, "workers must be 1 or more, not 0"),
    ],
)
def test_arguments_that_cannot_be_meant_are_errors_of_one_line(
    arguments: dict[str, Any], words: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"videos": tmp_path, "streams": NETWORK, "store": tmp_path / "s.zarr"} | arguments
    (tmp_path / "a.mp4").touch()
    with pytest.raises(AmexError, match=words) as error:
        amex.extract(**given, device="cpu")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "s.zarr").exists()


def test_a_run_is_trained_searched_and_loaded(tmp_path: Path) -> None:
    store = tiny_store(tmp_path)
    settings = [*TINY, "train.epochs=1"]
    with pytest.raises(AmexError, match="does not say which manifest it was made from"):
        amex.fit("global", store=store, work_dir=tmp_path / "run", settings="train.epochs=1")
    fitted = amex.fit(
        "global", store=store, manifest=tmp_path / "m.jsonl", work_dir=tmp_path / "run", settings=settings, quiet=True
    )
    hits = amex.search(tmp_path / "run", "a dog chases a cat", top=3)
    assert [hit.rank for hit in hits] == [1, 2, 3]
    model = amex.load(fitted.best)
    (ranked,) = model.rank(["a dog chases a cat"], model.embed_video(amex.open_store(store)), top=3)
    assert [clip for clip, _ in ranked] == [hit.clip.clip_id for hit in hits]
    wrong = ((" ", 1, "no words"), ("a \ud800", 1, "query is not valid Unicode"), ("a dog", 0, "top must be 1 or more"))
    for query, top, words in wrong:
        with pytest.raises(AmexError, match=words):
            amex.search(store, query, top=top)


@pytest.mark.slow
def test_a_script_without_a_main_guard_extracts(clips: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    call = f"amex.extract({str(clips)!r}, {NETWORK!r}, 's.zarr', device='cpu', **{MANY!r})"
    script.write_text(f"import amex\nprint('begin')\nprint(len({call}[{NETWORK!r}]))\n")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["begin", "4"], done.stderr  # workers do not run the script again
    assert "4/4 clips" in done.stderr


@pytest.mark.slow
def test_the_notebook_runs_and_names_no_machine(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    path = Path(__file__).parents[1] / "docs" / "guides" / "notebook.ipynb"
    assert str(Path.home()) not in path.read_text()
    assert "site-packages" not in path.read_text()
    notebook = nbformat.read(path, as_version=4)
    committed = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    executed = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert len(committed[1]) == len(executed[1])
    assert committed[1][0].text == executed[1][0].text  # what is drawn is the same everywhere
