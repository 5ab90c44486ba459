"""Commands find a data set by its name, from annotations to a trained model; a store records its sources."""

from __future__ import annotations

import functools
import http.server
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from conftest import amex, write_lines

from amex.cli import main
from amex.cli.extract import clips_of
from amex.cli.options import ExtractOptions
from amex.cli.places import placed
from amex.cli.remembering import remember
from amex.extracting import update
from amex.features import create_store, open_store, read_sources, write_sources
from amex.manifests import (
    DATASETS,
    AnnotationFile,
    Annotations,
    Clip,
    DatasetFolder,
    ManifestError,
    data_root,
    read_manifest,
    scan_folder,
    write_manifest,
)


@pytest.fixture
def tiny(cluster: str) -> tuple[str, ...]:
    """Options for a fast extraction."""
    return ("--stream", "r2plus1d_tiny", "--device", "cpu", "--cluster", cluster)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the address of a web server and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *said: Any) -> None: ...

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}", folder
    serving.shutdown()


def cooking(videos: dict[str, tuple[str, int]]) -> bytes:
    """Return annotations like YouCook2's: videos with a subset and a number of steps of 0.4 s."""
    database = {
        video: {
            "subset": subset,
            "annotations": [
                {"segment": [0.5 * i, 0.5 * i + 0.4], "id": i, "sentence": f"stir {video} {i}"} for i in range(steps)
            ],
        }
        for video, (subset, steps) in videos.items()
    }
    return json.dumps({"database": database}).encode()


OF_CLIPS = {"a": ("training", 2), "b": ("training", 2), "c": ("validation", 2), "gone": ("validation", 1)}


@pytest.fixture
def home(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetFolder:
    """Return a data root with a small YouCook2: three of the four videos in its annotations."""
    monkeypatch.chdir(tmp_path)
    made = DatasetFolder(Path("data/youcook2"))
    made.annotations.mkdir(parents=True)
    (made.annotations / "youcookii_annotations_trainval.json").write_bytes(cooking(OF_CLIPS))
    made.videos.mkdir()
    for name in ("a.mp4", "b.webm", "c.avi"):
        shutil.copy(clips / name, made.videos)
    return made


def test_the_data_root_is_an_option_or_a_variable_or_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMEX_ROOT", raising=False)
    assert data_root() == Path("data")
    monkeypatch.setenv("AMEX_ROOT", "/elsewhere")
    assert data_root() == Path("/elsewhere")
    assert data_root(Path("given")) == Path("given")


def test_a_data_set_is_extracted_trained_and_evaluated_by_name(home: DatasetFolder, tiny: tuple[str, ...]) -> None:
    extracted = amex("extract", "--dataset", "youcook2", *tiny)
    assert extracted.exit_code == 3, extracted.output  # one video is missing
    assert sorted(open_store(home.store)["r2plus1d_tiny"]) == ["a_0", "a_1", "b_0", "b_1", "c_0", "c_1"]
    kept = home.manifest("official")
    assert {clip.clip_id for clip in read_manifest(kept)} >= {"a_0", "gone_0"}
    sources = read_sources(home.store)
    assert (sources.manifest, sources.videos) == (kept, home.videos)
    small = ("--set", "train.epochs=1", "--set", "model.dim=8", "--set", "model.text=words")
    trained = amex("train", "global", "--dataset", "youcook2", *small)
    assert trained.exit_code == 0, trained.output
    run = home.folder / "runs" / "global-official"
    assert f"Next: amex eval {run}" in trained.output
    evaluated = amex("eval", run)
    assert evaluated.exit_code == 0, evaluated.output
    assert "gallery youcook2:official, 2 of 3 clips: 1 failed in r2plus1d_tiny" in evaluated.output
    assert "youcook2:official has 3,492 test clips, this manifest has 3" in evaluated.output


def test_another_gallery_of_the_same_store_is_evaluated_by_its_name(home: DatasetFolder, tiny: tuple[str, ...]) -> None:
    amex("extract", "--dataset", "youcook2", *tiny)
    small = ("--set", "train.epochs=1", "--set", "model.dim=8", "--set", "model.text=words")
    assert amex("train", "global", "--dataset", "youcook2", *small).exit_code == 0
    other = write_lines(
        home.manifest("howto100m"),
        {
            "clip_id": "c_0",
            "video": "c",
            "start": 0.0,
            "end": 0.4,
            "split": "test",
            "captions": ["stir"],
            "extras": {"protocol": "youcook2:howto100m"},
        },
    )
    run = home.folder / "runs" / "global-official"
    result = amex("eval", run, "--dataset", "youcook2:howto100m", "--json")
    assert result.exit_code == 0, result.output
    coverage = json.loads(result.stdout)["coverage"]
    assert (coverage["gallery"], coverage["clips"], coverage["published"]) == ("youcook2:howto100m", 1, 3_350)
    assert other.exists()
    # The results of the run's own gallery do not change.
    assert [path.name for path in run.glob("eval-*")] == ["eval-youcook2-howto100m-test.json"]


def test_missing_videos_of_a_data_set_are_an_error_with_their_folder(
    home: DatasetFolder, tiny: tuple[str, ...]
) -> None:
    shutil.rmtree(home.videos)
    refused = amex("extract", "--dataset", "youcook2", *tiny)
    assert refused.exit_code == 2
    assert f"put the videos into {home.videos} (amex datasets show youcook2:official)" in refused.output


def test_a_named_protocol_overrides_the_type_of_the_annotation_file(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, tiny: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\na\nb\n")
    (tmp_path / "MSRVTT_train.7k.csv").write_text("video_id\nb\n")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("video_id,sentence\nc,a circle\n")
    (tmp_path / "train_list_miech.txt").write_text("a\n")
    (tmp_path / "test_list_miech.txt").write_text("c\n")
    run = ("--videos", clips, "--limit", "1", *tiny)
    extracted = amex("extract", "--dataset", "msrvtt:7k", "--annotations", "MSRVTT_train.7k.csv", *run)
    assert extracted.exit_code == 0, extracted.output
    (manifest,) = Path("data/msrvtt").glob("*.jsonl")
    assert manifest.name == "7k.jsonl"
    assert [clip.clip_id for clip in read_manifest(manifest)] == ["b", "c"]
    # Without a named protocol, the file decides, and the manifest has the name of the protocol.
    extracted = amex("extract", "--dataset", "msrvtt", "--annotations", "train_list_miech.txt", *run)
    assert extracted.exit_code == 0, extracted.output
    assert {clip.extras["protocol"] for clip in read_manifest("data/msrvtt/1k-B.jsonl")} == {"msrvtt:1k-B"}
    assert not Path("data/msrvtt/1k-A.jsonl").exists()


def test_a_given_annotations_folder_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    run = ("--videos", "videos", "--store", "s.zarr", "--dry-run")
    refused = amex("extract", "--dataset", "msrvtt", "--annotations", "mistyped", *run)
    assert refused.exit_code == 1
    assert "mistyped does not exist; --annotations takes the folder with the split lists" in refused.output
    assert not Path("mistyped").exists()


def test_local_files_of_a_data_set_are_counted_and_missing_videos_listed(home: DatasetFolder) -> None:
    shown = amex("datasets", "show", "youcook2")
    assert shown.exit_code == 3, shown.output
    assert "3 of 4 videos" in shown.output
    assert "1 missing, 0 unreadable" in shown.output
    assert "clips lost with them: 1 test" in shown.output
    assert (home.folder / "missing.txt").read_text() == "gone\n"
    record = json.loads(amex("datasets", "show", "youcook2", "--json").stdout)
    assert (record["videos_found"], record["missing"], record["clips_lost"]) == (3, 1, {"test": 1})
    assert record["hours"] == pytest.approx(4 / 3600, rel=0.01)
    bare = amex("datasets", "show", "msrvtt", "--root", "nowhere")
    assert bare.exit_code == 0
    assert "MSRVTT_train.9k.csv: fetched when it is needed" in bare.output


def test_showing_a_data_set_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = DatasetFolder(tmp_path / "didemo").annotations
    folder.mkdir(parents=True)
    for split in ("train", "val", "test"):
        (folder / f"{split}_list.txt").write_text(f"{split}.mp4\n")
    monkeypatch.setattr(AnnotationFile, "fetch", lambda file, folder: pytest.fail(f"{file.name} is fetched"))
    shown = amex("datasets", "show", "didemo", "--root", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "clips: 1 train, 1 val, 1 test" in shown.output
    assert "val_data.json: optional, fetched when it is needed" in shown.output


def test_the_readme_says_how_many_data_sets_are_listed() -> None:
    listed = sum(bool(dataset.protocols) for dataset in DATASETS.values())
    assert f"counts of {listed} data sets" in (Path(__file__).parents[1] / "README.md").read_text()


def test_every_protocol_is_listed_with_its_counts() -> None:
    listed = amex("datasets").output
    record = json.loads(amex("datasets", "ls", "--json").stdout)
    for name, dataset in DATASETS.items():
        for protocol, of in dataset.protocols.items():
            assert f"{name}:{protocol}" in listed
            assert record[f"{name}:{protocol}"]["clips"] == dict(of.clips)


def test_a_store_records_the_folder_that_it_was_extracted_from(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    videos = tmp_path / "my_videos"
    videos.mkdir()
    for name in ("a.mp4", "b.webm"):
        shutil.copy(clips / name, videos)
    assert amex("extract", "my_videos", "--store", "my.zarr", *tiny).exit_code == 0
    assert [clip.clip_id for clip in read_manifest("my.jsonl")] == ["a.mp4", "b.webm"]
    assert read_sources(Path("my.zarr")).videos == Path("my_videos")
    shown = amex("features", "show", "my.zarr", "a.mp4", "--out", "a.png")
    assert shown.exit_code == 0, shown.output
    # New videos are added to the manifest, unless a user has edited it.
    shutil.copy(clips / "c.avi", videos)
    assert amex("extract", "my_videos", "--store", "my.zarr", *tiny).exit_code == 0
    assert len(read_manifest("my.jsonl")) == 3
    lines = Path("my.jsonl").read_text().splitlines()[:2]
    Path("my.jsonl").write_text("\n".join(lines) + "\n")
    again = amex("extract", "my_videos", "--store", "my.zarr", *tiny)
    assert "my.jsonl was changed since amex wrote it, and stays as it is" in again.output
    assert len(read_manifest("my.jsonl")) == 2
    Path("my.jsonl").unlink()
    amex("extract", "my_videos", "--store", "my.zarr", *tiny)
    assert len(read_manifest("my.jsonl")) == 3


def test_an_existing_manifest_is_not_overwritten(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = write_lines(tmp_path / "my.jsonl", {"clip_id": "a.mp4", "video": "a.mp4", "captions": ["mine"]})
    before = mine.read_bytes()
    result = amex("extract", clips, "--store", "my.zarr", *tiny, "--limit", "1")
    assert "stays as it is" in result.output
    assert mine.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_each_store_has_its_own_manifest(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = read_clips(clips)
    for store, manifest in {"my.v1": "my.v1.jsonl", "my.v2": "my.v2.jsonl", "my.zarr": "my.jsonl"}.items():
        remember(placed_options(clips, "--store", store), given)
        assert read_sources(Path(store)).manifest == Path(manifest)
        assert read_manifest(manifest) == given
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    remember(placed_options(clips, "--store", "."), given)
    assert read_manifest(tmp_path / "here.jsonl") == given


def test_concurrent_tasks_of_a_run_share_one_manifest(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, given = placed_options(clips, "--store", tmp_path / "my.zarr"), read_clips(clips)
    remember(options, given)
    for _ in range(10):  # the manifest exists, but the store has not recorded its writer
        (tmp_path / "my.zarr" / "sources.json").unlink()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: remember(options, given), range(4)))
    assert "was changed" not in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.jsonl", "my.zarr"]


def test_extraction_uses_the_clips_of_the_named_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lists = {"MSRVTT_train.9k.csv": "9", "MSRVTT_train.7k.csv": "7", "train_list_miech.txt": "m"}
    lists |= {"MSRVTT_JSFUSION_test.csv": "t", "test_list_miech.txt": "n"}
    for name, video in lists.items():
        csv = name.endswith(".csv")
        Path(name).write_text(f"video_id,sentence\n{video},a cat\n" if csv else f"{video}\n")
    for dataset, file, videos in (
        ("msrvtt:7k", "MSRVTT_train.9k.csv", {"7", "t"}),
        ("msrvtt", "MSRVTT_train.9k.csv", {"9", "t"}),
        ("msrvtt", "train_list_miech.txt", {"m", "n"}),
    ):
        options = placed_options("--dataset", dataset, "--annotations", file, "--videos", tmp_path)
        scanned = clips_of(options)
        assert {clip.video for clip in scanned} == videos
        remember(options, scanned)
        protocol = {"7": "7k", "9": "1k-A", "m": "1k-B"}[min(videos)]
        assert read_sources(options.store).manifest == DatasetFolder(Path("data/msrvtt")).manifest(protocol)
    refused = amex("extract", "--dataset", "msrvtt", "--annotations", "typo.csv", "--videos", tmp_path)
    assert "typo.csv does not exist" in refused.output
    assert not Path("typo.csv").exists()


def test_the_manifest_of_each_protocol_follows_its_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = DatasetFolder(Path("data/msrvtt"))
    made.annotations.mkdir(parents=True)
    for name in ("MSRVTT_train.9k.csv", "MSRVTT_train.7k.csv", "MSRVTT_JSFUSION_test.csv"):
        (made.annotations / name).write_text(f"video_id,sentence\n{name[:13]},a cat\n")
    monkeypatch.setattr(type(DATASETS["msrvtt"]), "fetch", lambda *_, **__: None)
    for said in ("a cat", "a dog"):
        entry = {"video_id": "MSRVTT_train.", "caption": said}
        (made.annotations / "MSRVTT_data.json").write_text(json.dumps({"sentences": [entry]}))
        for protocol in ("1k-A", "7k"):
            options = placed_options("--dataset", f"msrvtt:{protocol}", "--videos", tmp_path)
            remember(options, clips_of(options))
            assert read_manifest(made.manifest(protocol))[0].captions == (said,)
    assert "was changed" not in capsys.readouterr().err
    # Changes by the user are kept in each manifest.
    made.manifest("1k-A").write_text("mine")
    options = placed_options("--dataset", "msrvtt:1k-A", "--videos", tmp_path)
    remember(options, clips_of(options))
    assert made.manifest("1k-A").read_text() == "mine"
    assert len(read_sources(made.store).written.split()) == 4  # each with and without splits


def test_splits_survive_a_correction_of_captions(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    clips = [Clip(clip_id=name, video=name, captions=(f"a {name}",)) for name in "abcdefgh"]
    written = update(path, clips, [], print)
    assert amex("manifest", "split", path, "--val", ".2", "--test", ".2").exit_code == 0
    drawn = {clip.clip_id: clip.split for clip in read_manifest(path)}
    assert set(drawn.values()) == {"train", "val", "test"}
    mended = [replace(clips[0], captions=("mended",)), *clips[1:], Clip(clip_id="new", video="new")]
    written = update(path, mended, written, print)
    after = {clip.clip_id: clip for clip in read_manifest(path)}
    assert {name: clip.split for name, clip in after.items()} == {**drawn, "new": ""}
    assert after["a"].captions == ("mended",)
    # Splits of captions.csv apply if the manifest is as amex wrote it; other changes by the user are kept.
    own = [replace(clip, split="train") for clip in mended]
    path.unlink()
    written = update(path, own, update(path, mended, written, print), print)
    assert {clip.split for clip in read_manifest(path)} == {"train"}
    write_manifest(clips[:2], path)
    assert update(path, own, written, print) == written
    assert read_manifest(path) == clips[:2]
    path.write_text("not a manifest")
    update(path, own, written, print)
    assert path.read_text() == "not a manifest"


def test_a_store_can_be_moved_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    store = create_store(tmp_path / "old" / "s.zarr")
    assert read_sources(store).manifest is None
    write_sources(store, manifest=tmp_path / "old" / "m.jsonl", videos=Path("/far/away"))
    write_sources(store, written="abc")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = read_sources(tmp_path / "new" / "s.zarr")
    assert (moved.manifest, moved.videos) == (tmp_path / "new" / "m.jsonl", Path("/far/away"))
    assert moved.written == "abc"


@pytest.mark.parametrize("text", ["{", "[]", '{"manifest": 3}'])
def test_damaged_sources_are_an_error_that_names_the_file(text: str, tmp_path: Path) -> None:
    store = create_store(tmp_path / "s.zarr")
    (store / "sources.json").write_text(text)
    result = amex("train", "global", "--store", store)
    assert result.exit_code == 1
    assert str(store / "sources.json") in result.output


def test_training_reports_all_missing_inputs_at_once(tmp_path: Path) -> None:
    refused = amex("train", "global")
    assert refused.exit_code == 2
    assert "missing: --store, the features from `amex extract`; --manifest, the clips" in refused.output
    store = create_store(tmp_path / "s.zarr")
    assert "missing: --manifest" in amex("train", "global", "--store", store).output


def placed_options(*arguments: Any) -> ExtractOptions:
    """Return the options of ``amex extract`` with the places filled in."""
    command_arguments = [str(argument) for argument in arguments]
    return placed(ExtractOptions(**main.commands["extract"].make_context("extract", command_arguments).params))


def read_clips(folder: Path) -> list[Clip]:
    return [item for item in scan_folder(folder) if isinstance(item, Clip)]


def archive(kind: str, name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as made:
            made.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["plain", "zip", "tar.gz"])
def test_annotations_are_fetched_once_and_checked(form: str, server: tuple[str, Path], tmp_path: Path) -> None:
    address, served = server
    content = cooking(OF_CLIPS)
    member = "" if form == "plain" else "deep/a.json"
    name = "a.json" if form == "plain" else f"all.{form}"
    (served / name).write_bytes(content if form == "plain" else archive(form, member, content))
    digest = sha256(content).hexdigest()
    file = AnnotationFile(name="a.json", url=f"{address}/{name}", member=member, sha256=digest)
    folder = tmp_path / "annotations"
    assert file.fetch(folder).read_bytes() == content
    assert Annotations(folder)["a.json"] == folder / "a.json"
    wrong = replace(file, sha256=sha256(b"x").hexdigest())
    shutil.rmtree(folder)
    with pytest.raises(ManifestError, match=r"a\.json.*download it yourself") as caught:
        wrong.fetch(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert Annotations(folder).find("a.json") is None


def test_a_failed_download_leaves_no_file(server: tuple[str, Path], tmp_path: Path) -> None:
    address, served = server
    content = cooking(OF_CLIPS)
    where = {"url": f"{address}/all.tar.gz", "member": "deep/a.json"}
    file = AnnotationFile(name="a.json", sha256=sha256(content).hexdigest(), **where)
    folder = tmp_path / "annotations"
    whole = archive("tar.gz", "deep/a.json", content)
    for wrong in (b"<html>please log in</html>", whole[:60], archive("tar.gz", "deep/a.json", content[:-9])):
        (served / "all.tar.gz").write_bytes(wrong)
        with pytest.raises(ManifestError, match=r"a\.json.*download it yourself"):
            file.fetch(folder)
        assert list(folder.iterdir()) == []
    # A download that was killed or is in progress.
    half = folder / ".fetch-other" / "deep" / "a.json"
    half.parent.mkdir(parents=True)
    half.write_bytes(content[:9])
    assert Annotations(folder).find("a.json") is None
    (served / "all.tar.gz").write_bytes(whole)
    assert file.fetch(folder).read_bytes() == content
    assert sorted(path.name for path in folder.iterdir()) == [".fetch-other", "a.json"]


def test_a_failed_download_names_address_file_and_folder(tmp_path: Path) -> None:
    gone = AnnotationFile(name="a.json", url="http://127.0.0.1:9/a.json", sha256="0" * 64)
    with pytest.raises(ManifestError, match=rf"cannot fetch a\.json.*{gone.url}.*put it at {tmp_path}/a\.json"):
        gone.fetch(tmp_path)
    unknown = replace(gone, sha256="", note="a form must be filled in")
    with pytest.raises(ManifestError, match=r"its digest is not known to amex; .*a form must be filled in"):
        unknown.fetch(tmp_path)


def test_commands_download_missing_annotations(
    server: tuple[str, Path], home: DatasetFolder, monkeypatch: pytest.MonkeyPatch, tiny: tuple[str, ...]
) -> None:
    address, served = server
    (there,) = home.annotations.iterdir()
    content = there.read_bytes()
    there.unlink()
    dataset = DATASETS["youcook2"]
    file = replace(
        dataset.protocols["official"].files[0],
        url=f"{address}/x.json",
        member="",
        sha256=sha256(content).hexdigest(),
    )
    official = replace(dataset.protocols["official"], files=(file,))
    monkeypatch.setitem(DATASETS, "youcook2", replace(dataset, protocols={**dataset.protocols, "official": official}))
    refused = amex("extract", "--dataset", "youcook2", *tiny)
    assert refused.exit_code == 1
    assert f"{address}/x.json" in refused.output
    (served / "x.json").write_bytes(content)
    done = amex("extract", "--dataset", "youcook2", *tiny)
    assert done.exit_code == 3
    assert f"fetching {there.name} from {address}/x.json" in done.output
    assert there.read_bytes() == content
