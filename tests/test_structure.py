"""Dependencies point one way."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

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
# Which packages of extract/ each of them may import: `video` uses no network, `encoders` reads no files of videos.
EXTRACT = {"video": set(), "encoders": {"video"}, "run": {"video", "encoders"}}
# A program that nothing imports: it trains the networks of its folder, with code of extract/.
PROGRAMS = {"shapes/train.py"}
SMALL = {"console", "errors", "foreign", ""}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        where = path.relative_to(ROOT)
        if where.as_posix() in PROGRAMS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                target = [*where.parts[: len(where.parts) - node.level], *(node.module or "").split(".")]
                if target[0] != package:
                    assert target[0] in ALLOWED[package] | SMALL, f"{path}:{node.lineno} imports {target[0]}"
                elif package == "extract" and len(where.parts) > 2 and where.parts[1] != target[1]:
                    assert target[1] in EXTRACT[where.parts[1]] | {"lazy", "limits"}, (
                        f"{path}:{node.lineno} imports {'.'.join(target)}"
                    )
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            assert not any(name == "amex" or name.startswith("amex.") for name in modules), f"{path}:{node.lineno}"


def test_reading_and_writing_a_store_imports_neither_care_nor_exchange() -> None:
    for path in (ROOT / "features").glob("*.py"):
        if path.name != "__init__.py":
            assert not re.search(r"from \.(care|exchange)\b", path.read_text()), path


@pytest.mark.parametrize(
    "name", [*sorted(set(ALLOWED) - {"extract", "shapes", "train"}), *(f"extract.{name}" for name in EXTRACT)]
)
def test_a_package_has_what_it_offers(name: str) -> None:
    package = importlib.import_module(f"amex.{name}")
    assert package.__doc__
    assert package.__all__
    for member in package.__all__:
        assert hasattr(package, member), member


def test_only_storage_knows_where_a_path_is() -> None:
    """``storage.Storage`` has a method for each difference between a folder and an object store."""
    for path in ROOT.rglob("*.py"):
        top = path.relative_to(ROOT).parts[0]
        if not top.endswith(".py") and top not in {*ALLOWED, "cli", "benchmarks"} - {"storage"}:
            continue  # tests, and folders of builds and editors
        for word in ("fsspec", "upath", "s3fs", "storage_options", "from ..storage.", "from ...storage."):
            assert word not in path.read_text(), f"{path}: {word}"


# Nouns that are counted in messages.
NOUNS = (
    "boxes|captions|clips|columns|cores|entries|epochs|failures|feeders|files|frames|graphs|ids|parameters|parts|"
    "processes|queries|questions|rows|samples|stores|streams|texts|tokens|videos|windows|words|workers"
)
# Files whose counts are always more than one, or whose text is compared with that of an earlier run.
MORE_THAN_ONE = {
    *("features/shards.py", "manifests/choosing.py", "manifests/videos.py", "manifests/datasets/base.py"),
    *("manifests/datasets/folder.py", "train/checkpoint.py", "train/report/breakdown.py", "train/submissions.py"),
}


def test_a_printed_count_agrees_with_its_noun() -> None:
    """A count of one is ``1 clip``: ``errors.plural`` writes counts, not ``f"{count} clips"``."""
    fixed = re.compile(rf"\{{(?![A-Z_]+\}})[^{{}}\n]*\}} (?:{NOUNS})\b")
    packages = (path for package in (*ALLOWED, "cli") for path in (ROOT / package).rglob("*.py"))
    wrong = {
        path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.py"), *packages] if fixed.search(path.read_text())
    }
    assert wrong <= MORE_THAN_ONE, "use errors.plural"
