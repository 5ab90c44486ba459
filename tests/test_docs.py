"""Every command and every Python example of the documentation runs.

A page runs from top to bottom in a folder of its own: its shell blocks in ``bash -e``, its Python blocks in one Python
process. ``doc_blocks`` describes how to leave a block out. At the start the folder contains:

- ``my_videos/``: twelve drawn videos of 2.4 s and their ``captions.csv``, with the split. Ids: ``a.mp4``, ``b.webm``,
  ``c.avi``, ``dog.mp4``, ``kitchen/wok.mp4``, ``kitchen/rice.mp4``, ``clips/01.mp4`` to ``clips/06.mp4``;
- ``my.zarr`` and ``my.jsonl``: features of these videos and captions, in the streams ``clip_vit_b32``,
  ``r2plus1d_18``, ``objects`` (``shapes_detector``) and ``text_bert`` (``minilm``);
- ``features.zarr`` and ``m.jsonl``: copies of both;
- ``runs/amenet-my``: AME-Net, trained on them for two epochs;
- ``data/youcook2`` and ``data/msrvtt``: a few videos, with annotations in the published format.

The pages in FRESH start with ``my_videos/`` alone.

Tests use no network. Networks with downloaded weights are replaced by small random ones with features of the same
length (``doc_networks``).
"""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from doc_blocks import ROOT, Block, blocks, commands, pages
from doc_folder import prepare
from warm_python import warm_python

from amex.cli import main, parameters

PAGES = {page.relative_to(ROOT).as_posix(): page for page in pages()}
# Pages for new users, who have only videos.
FRESH = {"README.md", "docs/start.md", "docs/guides/own-videos.md"}
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))
NO_SOURCE = {"tests", "docs", "benchmarks"}
LIMIT = 300  # seconds for a block, far above the slowest
# Runs the Python blocks of a page. Each line of standard input is [place, code]; a byte reports its success.
PYTHON = """
import json, os, sys
answer = int(sys.argv[1])
for line in sys.stdin:
    exec(compile(*json.loads(line), "exec"), globals())
    sys.stdout.flush()
    os.write(answer, b".")
"""


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_block_runs_or_says_why_not(name: str) -> None:
    problems = [f"{block.place}: {block.problem}" for block in blocks(PAGES[name]) if block.problem]
    assert not problems, "\n".join(problems)


def test_commands_in_the_documentation_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in blocks that are not run and whose files do not exist."""
    for kind in (parameters.StoragePath, parameters.Folder, parameters.Checkpoint):
        monkeypatch.setattr(kind, "accepts", lambda self, path: True)
    parsed = 0
    for page in pages():
        for block in blocks(page):
            for words in commands(block.code) if block.language in ("sh", "bash", "console") else ():
                parsed += 1
                command, arguments = main, words
                while isinstance(command, click.Group) and (arguments or not command.invoke_without_command):
                    if set(arguments[:1]) & {"--help", "-h", "--version"}:
                        break
                    assert arguments, block.place
                    assert arguments[0] in command.commands, f"{block.place}: {arguments[0]}"
                    command, arguments = command.commands[arguments[0]], arguments[1:]
                else:
                    try:
                        command.make_context(block.place, list(arguments))
                    except click.exceptions.Exit:
                        pass  # --help
                    except click.ClickException as error:
                        raise AssertionError(f"{block.place}: {error.format_message()}") from error
    assert parsed > 50


@pytest.mark.parametrize("page", ["cli.md", "configurations.md", "streams.md"])
def test_generated_pages_are_current(page: str) -> None:
    made = GENERATE["PAGES"][page]()
    assert (ROOT / "docs" / "reference" / page).read_text() == made, "run: python docs/generate.py"


def test_messages_in_troubleshooting_are_those_of_the_source() -> None:
    """The fixed parts of one text of the source make up at least 30 % of each message."""
    texts = [
        pieces
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] not in NO_SOURCE
        for pieces in texts_of(path)
    ]
    messages = [b for b in blocks(PAGES["docs/troubleshooting.md"]) if b.language == "text"]
    assert len(messages) > 20
    for block in messages:
        message = " ".join(block.code.split()).removeprefix("Error: ")
        assert any(covered(message, pieces) > 0.3 for pieces in texts), f"{block.place}: {message}"


def texts_of(path: Path) -> Iterator[list[str]]:
    """Yield the texts of a Python file, each as its fixed parts."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.split(r"\{\w*\}", node.value)
        elif isinstance(node, ast.JoinedStr):
            yield [part.value for part in node.values if isinstance(part, ast.Constant)]


def covered(message: str, pieces: list[str]) -> float:
    """Return the share of a message that the parts of a text make up, in order; 0 if a part is missing."""
    position = length = 0
    for piece in pieces:
        piece = piece.strip()
        position = message.find(piece, position)
        if position < 0:
            return 0
        position += len(piece)
        length += len(piece)
    return length / len(message)


@pytest.mark.slow
def test_the_site_builds_and_asks_no_other_host(tmp_path: Path) -> None:
    """No link or anchor is broken, and pages load nothing from other hosts."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    loaded = re.compile(
        r"""<(?:script|img|iframe|source|video)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>|<link\b[^>]*href=["']?(?:https?:)?//[^>]*>"""
        r"""|url\(["']?(?:https?:)?//[^)]*\)|@import[^;]*//[^;]*;"""
    )
    files = [path for path in (tmp_path / "site").rglob("*") if path.suffix in (".html", ".css")]
    assert len(files) > 30
    requests = {f"{path.name}: {match[0]}" for path in files for match in loaded.finditer(path.read_text())}
    assert not requests


@dataclass(frozen=True)
class Prepared:
    """The start of every page: the folder to copy, and the environment with ``amex`` on PATH."""

    folder: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    place = tmp_path_factory.mktemp("documentation")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AMEX_", "PYTEST_", "HF_"))},
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(place / "hub"),
        "TORCH_HOME": str(place / "torch"),
        "HOME": str(place),
        "PYTHONPATH": f"{ROOT.parent}:{ROOT / 'tests'}",
        "COLUMNS": "100",
        "GIT_CEILING_DIRECTORIES": str(place),
    }
    with warm_python(place / "bin", environment, "doc_networks") as programs:
        environment["PATH"] = f"{programs}:{environment['PATH']}"
        prepare(place / "start", environment)
        yield Prepared(place / "start", environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "status", "output"),
    [
        ("amex nonsense 2>&1 | grep -o 'No such command'", 0, "No such command\n"),
        ("amex nonsense 2>/dev/null", 2, ""),
        ("python -m amex.cli report nowhere 2>/dev/null", 1, ""),
        ("echo hello | python -c 'import sys, torch; print(sys.stdin.read(), sys.argv)' a", 0, "hello\n ['-c', 'a']\n"),
        ("cd ..; X=1 python -c 'import os; print(os.getcwd() == os.environ[\"PWD\"], os.environ[\"X\"])'", 0,
         "True 1\n"),
        ("python -c 'raise SystemExit(7)'", 7, ""),
        ("python -c 'import os; os.kill(os.getpid(), 9)'; true", 137, ""),
        ("timeout -s TERM 1 python -c 'import time; time.sleep(60)'", 124, ""),
        ("timeout -s KILL 1 python -c 'import os, time; print(os.getpid(), flush=True); time.sleep(60)' > pid || true; "
         "sleep 0.5; kill -0 $(cat pid) 2>/dev/null", 1, ""),
        ("exec 5> five; python -c 'import os; os.write(5, b\"x\")'; cat five", 0, "x"),
        ("python -c 'import multiprocessing as m; p = m.get_context(\"spawn\").Process(target=print, args=(3,)); "
         "p.start(); p.join(); print(p.exitcode)'", 0, "3\n0\n"),
    ],
)  # fmt: skip
def test_a_fork_is_as_a_process_of_its_own(
    command: str, status: int, output: str, prepared: Prepared, tmp_path: Path
) -> None:
    bash = ["bash", "-e", "-c", command]
    done = subprocess.run(bash, cwd=tmp_path, env=prepared.environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (status, output), done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_runs(name: str, prepared: Prepared, tmp_path: Path) -> None:
    todo = [block for block in blocks(PAGES[name]) if block.runs or block.title]
    if not any(block.runs for block in todo):
        pytest.skip("no block to run")
    shutil.copytree(prepared.folder / "my_videos", tmp_path / "page" / "my_videos")
    if name not in FRESH:
        shutil.copytree(prepared.folder, tmp_path / "page", dirs_exist_ok=True)
    run_page(todo, prepared.environment, tmp_path)


def run_page(todo: list[Block], environment: dict[str, str], tmp_path: Path) -> None:
    """Run the blocks of a page in order; raise AssertionError with the output of the first that fails."""
    folder, state, log = tmp_path / "page", tmp_path / "state", tmp_path / "log"
    state.touch()
    python = None
    try:
        for block in todo:
            if block.title:
                (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.title).write_text(block.code)
            elif block.language == "sh":
                run_shell(block, folder, environment, state, log)
            else:
                python = python or Python(folder, environment, log)
                python.run(block)
    finally:
        if python:
            python.end()


def run_shell(block: Block, folder: Path, environment: dict[str, str], state: Path, log: Path) -> None:
    """Run a block in ``bash -e``, with the exported variables and the folder of the previous block."""
    keep = f'trap \'{{ export -p; printf "cd %q\\n" "$PWD"; }} > {state}\' EXIT'
    script = f"source {state}; {keep}\n{block.code}"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-e", "-c", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if text := block.comments.get("stop at"):
                wait_for(text, process, log)
                os.killpg(process.pid, signal.SIGINT)
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{block.place} runs longer than {LIMIT} s:\n{log.read_text()[-3000:]}") from None
    expected = {int(block.comments.get("exit status", 0))} if "stop at" not in block.comments else {0, 130, -2}
    assert process.returncode in expected, (
        f"{block.place} ended with {process.returncode}:\n{block.code}\n{log.read_text()[-3000:]}"
    )


def wait_for(text: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(10 * LIMIT):
        if text in log.read_text():
            return
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(f"it does not print {text!r}:\n{log.read_text()[-3000:]}")


class Python:
    """One Python process that runs the blocks of a page in one namespace."""

    def __init__(self, folder: Path, environment: dict[str, str], log: Path) -> None:
        self.log = log
        self.answers, answer = os.pipe()
        with log.open("w") as output:
            self.process = subprocess.Popen(
                ["python", "-c", PYTHON, str(answer)],
                cwd=folder,
                env=environment,
                executable=shutil.which("python", path=environment["PATH"]),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(answer,),
                text=True,
            )
        os.close(answer)

    def run(self, block: Block) -> None:
        self.process.stdin.write(json.dumps([block.code, block.place]) + "\n")
        self.process.stdin.flush()
        assert os.read(self.answers, 1), f"{block.place} failed:\n{self.log.read_text()[-3000:]}"

    def end(self) -> None:
        self.process.stdin.close()
        os.close(self.answers)
        self.process.wait(LIMIT)
