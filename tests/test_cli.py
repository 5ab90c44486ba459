"""Every command teaches, and every error is one line that says what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import QUICK, amex, extract

from amex.cli import main


def commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*prefix, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))


@pytest.mark.parametrize(("path", "command"), list(commands(main)), ids=lambda value: str(value))
def test_every_command_and_option_has_help_and_is_documented(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help
    assert len(command.help.split("\n\n")[0]) < 60, "a group cuts it off"
    if not isinstance(command, click.Group):
        assert f"amex {' '.join(path)}" in command.help or path[-1:] == ("ls",), "an example is missing"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
    shown = CliRunner().invoke(main, [*path, "--help"], terminal_width=80)
    assert shown.exit_code == 0
    assert "..." not in shown.output.partition("Commands:")[2], "a line is cut off"
    pages = [Path(__file__).parents[1] / "README.md", *(Path(__file__).parents[1] / "docs").rglob("*.md")]
    assert any(f"amex {' '.join(path)}" in page.read_text() for page in pages)


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys\nfrom amex.cli import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'mmengine', 'faiss', 'zarr', 'dask', 'distributed', 'av', 'decord'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["extract", "--videos", ".", "--store", "s"], 2, "give the clips: a FOLDER of videos, --dataset NAME, or --manifest FILE"),
        (["extract"], 2, "give the clips: a FOLDER of videos, --dataset NAME, or --manifest FILE; give --store"),
        (["extract", "V", "--manifest", "V/a.mp4", "--store", "s"], 2, "not two of them"),
        (["extract", "V", "--videos", "W", "--store", "s"], 2, "not in both"),
        (["extract", "--manifest", "V/a.mp4"], 2, "give --store, where the features go; give --videos"),
        (["extract", "--dataset", "youcok2", "--videos", ".", "--store", "s"], 1, "did you mean 'youcook2'"),
        (["extract", "--dataset", "msrvtt:9k", "--videos", ".", "--store", "s"], 1, "unknown protocol '9k'"),
        (["extract", "--dataset", "kinetics", "--annotations", "x", "--videos", ".", "--store", "s"], 1, "unknown data set"),
        (["extract", "--manifest", "none.jsonl", "--videos", ".", "--store", "s"], 1, "there is no manifest none.jsonl"),
        (["extract", "--dataset", "folder", "--videos", "none", "--store", "s"], 1, "does not exist"),
        (["extract", "--dataset", "folder", "--videos", "V", "--store", "s", "--stream", "r2plus1d"], 1, "did you mean 'r2plus1d_18'"),
        (["extract", "--dataset", "folder", "--videos", "V", "--store", "s", "--weights", "x=random:0"], 2, "no stream of this run"),
        (["extract", "--dataset", "folder", "--videos", "V", "--store", "s", "--weights", "random:0"], 2, "STREAM=VALUE"),
        (["extract", "--dataset", "folder", "--store", "s"], 2, "--dataset folder needs --videos"),
        (["extract", "--dataset", "folder", "--annotations", "V", "--store", "s", *QUICK], 2, "--dataset folder needs --videos"),
        (["extract", "--dataset", "folder", "--videos", "V", "--store", "s", *QUICK, "--text-encoder", "minilm"], 2, "add --stream text_bert"),
        (["extract", "--dataset", "folder", "--videos", "V", "--store", "s", "--stream", "x=yolo:v8"], 1, "mmdet:WHICH"),
        (["extract", "--dataset", "folder", "--videos", "V", "--store", "s", "--stream", "shapes_detector", "--set", "shapes_detector.boxs=3"], 1, "did you mean 'boxes'"),
        (["extract", "--dataset", "folder", "--videos", "V", "--store", "s", *QUICK, "--set", "r2plus1d_18.frame=3"], 1, "did you mean 'frames'"),
        (["extract", "--dataset", "folder", "--videos", "V", "--store", "s", *QUICK, "--set", "r2plus1d_18.frames=x"], 1, "not a number"),
        (["extract", "--dataset", "folder", "--videos", "V", "--store", "s", "--stream", "i3d_rgb", "--weights", "i3d_rgb=random:0", "--set", "i3d_rgb.frames=4"], 1, "at least 9 frames"),
        (["extract", "--dataset", "folder", "--videos", "V", "--store", "s", "--stream", "../x=s3d", "--weights", "../x=random:0"], 2, "cannot be a stream's name"),
        (["extract", "--dataset", "folder", "--videos", "V", "--store", "s", *QUICK, "--cluster", "tcp://127.0.0.1:9"], 1, "no Dask scheduler answers"),
        (["extract", "--dataset", "folder", "--videos", "V", "--store", "V", *QUICK], 1, "not an amex store"),
        (["extract", "--dataset", "folder", "--videos", "V", "--store", "s", *QUICK, "--repair", "--dry-run"], 2, "repairs nothing"),
        (["extract", "--dataset", "folder", "--videos", "none", "--store", "s", *QUICK], 1, "the videos folder none does not exist"),
        (["manifest", "build", "youcook2", "--annotations", "none.json", "--out", "m"], 1, "does not exist"),
        (["manifest", "show", "none.jsonl"], 1, "amex manifest build"),
        (["features", "info", "none.zarr"], 1, "there is no store none.zarr"),
        (["extract", "--nonsense"], 2, "No such option"),
    ],
)  # fmt: skip
def test_errors_are_one_line_that_says_what_to_do(
    arguments: list[str], code: int, words: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(clips, tmp_path / "V")
    monkeypatch.chdir(tmp_path)
    result = amex(*arguments)
    assert result.exit_code == code, result.output
    assert words in result.output
    assert "Traceback" not in result.output
    assert len([line for line in result.output.splitlines() if line.startswith("Error")]) == 1


def test_a_manifest_is_built_and_shown(clips: Path, tmp_path: Path) -> None:
    built = amex("manifest", "build", "folder", "--annotations", clips, "--out", tmp_path / "m.jsonl")
    assert "4 clips of 4 videos" in built.output
    assert "4 clips without captions" in built.output
    shown = amex("manifest", "show", tmp_path / "m.jsonl", "--limit", 1)
    assert "a.mp4  [0, end) of a.mp4" in shown.output


def test_a_store_is_shown_listed_and_verified(clips: Path, tmp_path: Path, cluster: str) -> None:
    store = tmp_path / "s.zarr"
    extract(clips, store, cluster)
    assert "4 clips, 12 rows of float16[512]" in amex("features", "info", store).output
    record = json.loads(amex("features", "info", store, "--json").stdout)["r2plus1d_18"]
    assert record["spec"]["sampling"]["stride"] == 16
    assert record["provenance"]["weights"] == "random:0"
    assert record["decoders"] == {"decord": 3, "pyav (codec mpeg4)": 1}
    listing = amex("features", "ls", store, "--limit", 2).output
    assert "a.mp4   3 rows of float16[512] over [0.000, 1.133) s" in listing
    assert "2 more" in listing
    assert amex("features", "ls", store, "--limit", -1).exit_code == 2
    assert "nothing failed" in amex("features", "failures", store).output
    (store / "r2plus1d_18" / "parts" / "orphan").mkdir()
    assert "1 leftover does no harm; --prune removes it" in amex("features", "verify", store).output
    assert "1 leftover removed" in amex("features", "verify", store, "--prune").output
    verified = amex("features", "verify", store)
    assert (verified.stdout.endswith("is intact\n"), verified.stderr) == (True, "")


def test_an_interrupted_command_says_whether_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("amex.features.open_store", interrupted)
    shown, compacted = (amex("features", command, tmp_path) for command in ("info", "compact"))
    assert (shown.exit_code, shown.stderr) == (130, "stopped\n")
    assert "the same command goes on from there" in compacted.stderr
    monkeypatch.setattr("amex.manifests.named", interrupted)
    assert amex("datasets", "show", "youcook2").stderr == "stopped\n"


def test_streams_lists_networks_and_presets() -> None:
    from amex.extract.encoders.kinds import ALIASES, DEFAULT_MODELS, KINDS
    from amex.extract.encoders.networks import NETWORKS
    from amex.extract.encoders.presets import PRESETS

    output = amex("streams").output
    assert all(name in output for name in (*NETWORKS, *PRESETS, *ALIASES, *DEFAULT_MODELS, *KINDS))
