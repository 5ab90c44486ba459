"""What the architecture and reliability pages name exists: functions, files, imports, tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from test_structure import ALLOWED

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text()


def defined(path: Path) -> set[str]:
    """Return functions, classes and methods of a module, methods as ``Class.method``."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def test_every_function_that_the_architecture_page_names_exists() -> None:
    steps = re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE)
    assert len(steps) > 30
    missing = [f"{file}:{name}" for file, name in steps if name not in defined(ROOT / file)]
    assert not missing, f"docs/architecture.md names {missing}: write the new names there"


def test_the_diagram_names_files_that_exist() -> None:
    diagram = (ROOT / "docs/figures/architecture.svg").read_text()
    files = re.findall(r'class="file"[^>]*>([\w/]+(?:\.py|/))', diagram)
    assert len(files) > 8
    assert not [file for file in files if not (ROOT / file).exists()]


def test_the_architecture_page_has_every_folder_and_the_imports_that_are_allowed() -> None:
    folders = {match.split("/")[0] for match in re.findall(r"^\| `([\w/]+)/` \|", PAGE, re.MULTILINE)}
    assert folders == {*ALLOWED, "cli", "tests", "docs", "benchmarks"}
    table = PAGE.split("| folder | may import |")[1]
    imports = dict(re.findall(r"^\| `(\w+)` \| ?(.*?) ?\|$", table, re.MULTILINE))
    assert {name: set(re.findall(r"\w+", allowed)) for name, allowed in imports.items()} == ALLOWED


def test_every_test_that_the_reliability_page_names_exists() -> None:
    missing, named = [], 0
    for line in (ROOT / "docs/concepts/reliability.md").read_text().splitlines():
        file = ""
        for word in re.findall(r"`(\w+\.py|[a-z_\d]+\.\.\.)`", line):
            if word.endswith(".py"):
                file = (ROOT / "tests" / word).read_text()
            else:
                named += 1
                missing += [word] if f"\ndef test_{word.removesuffix('...')}" not in file else []
    assert named > 50
    assert not missing, f"docs/concepts/reliability.md names {missing}: write the new names there"
