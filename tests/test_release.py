"""A release has one version, and its packages hold what they need."""

from __future__ import annotations

import re
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from amex.errors import AmexError, MissingExtra, needs

ROOT = Path(__file__).parents[1]
if not (ROOT / "setup.cfg").exists():
    pytest.skip("this is no checkout", allow_module_level=True)


@pytest.fixture(scope="module")
def setup() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_version_is_the_same_everywhere(setup: ConfigParser) -> None:
    version = setup["metadata"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    latest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert latest is not None
    assert latest.groups() == (version, str(citation["date-released"]))


def test_every_package_of_the_checkout_is_in_the_wheel(setup: ConfigParser) -> None:
    listed = set(setup["options"]["packages"].split())
    packages = {
        ".".join(("amex", *path.parent.relative_to(ROOT).parts))
        for folder in ROOT.glob("*/__init__.py")
        for path in folder.parent.rglob("__init__.py")
    }
    assert packages | {"amex"} == listed


def test_an_import_that_fails_names_its_extra() -> None:
    with (
        pytest.raises(MissingExtra, match=r"^CLIP needs no_such_package: pip install 'amex\[text\]'$"),
        needs("text", "CLIP"),
    ):
        import no_such_package.module  # noqa: F401
    assert issubclass(MissingExtra, AmexError)


def test_every_extra_that_an_error_names_exists(setup: ConfigParser) -> None:
    extras = set(setup["options.extras_require"])
    pattern = re.compile(r"amex\[([a-z0-9,]+)\]|\bneeds\(\"([a-z0-9]+)\"")
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("[a-z]*/**/*.py")]:
        if path.parts[len(ROOT.parts)] in ("tests", "build"):
            continue
        for match in pattern.finditer(path.read_text()):
            names = (match[1] or match[2]).split(",")
            assert extras.issuperset(names), f"{path}: {match[0]}"


@pytest.mark.parametrize(
    ("package", "stream", "extra"), [("mmcv", "mmdet:x", "objects"), ("transformers", "frames:x", "text")]
)
def test_a_network_without_its_library_names_the_extra(
    package: str, stream: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amex.extract.encoders import plan_stream

    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=rf"needs {package}: pip install 'amex\[{extra}\]'"):
        plan_stream("x", stream, device="cpu", precision="fp32")
