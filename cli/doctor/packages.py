"""Checks of required and optional packages, and of the parsers of captions."""

from __future__ import annotations

import platform
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

from packaging.requirements import Requirement

from ... import __version__
from .findings import ROOT, Finding, Subject, tried

# Extras that a user of amex does not need, and the one that names others.
NOT_LISTED = {"all", "bench", "dev", "docs", "test"}


def packages(subject: Subject) -> Iterator[Finding]:
    """Check Python, amex, its requirements and its extras, with their versions."""
    yield Finding(what="Python", state="ok", found=f"{platform.python_version()}, {sys.executable}", essential=True)
    yield Finding(what="amex", state="ok", found=f"{__version__}, {ROOT}", essential=True)
    needed: defaultdict[str, list[Requirement]] = defaultdict(list)
    for requirement in map(Requirement, requires("amex") or ()):
        extra = _extra(requirement)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            needed[extra].append(requirement)
    yield _installed("requirements", needed.pop("", []), essential=True)
    for extra in sorted(needed.keys() - NOT_LISTED):
        yield _installed(f"amex[{extra}]", needed[extra])


def _extra(requirement: Requirement) -> str:
    """Return the extra that a requirement belongs to; empty for a requirement of every installation."""
    _, _, name = str(requirement.marker or "").partition("extra == ")
    return name.strip("\"' ")


def _installed(what: str, wanted: list[Requirement], *, essential: bool = False) -> Finding:
    """Check whether packages are installed in the required versions."""
    present, problems, to_install = [], [], []
    for requirement in wanted:
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed")
        else:
            present.append(f"{requirement.name} {installed}")
            if requirement.specifier.contains(installed, prereleases=True):
                continue
            problems.append(f"{requirement.name} {installed} is not {requirement.specifier}")
        to_install.append(f"'{requirement.name}{requirement.specifier}'")
    if not problems:
        versions = ", ".join(present) if len(present) < 6 else f"all {len(present)} packages"
        return Finding(what=what, state="ok", found=versions, essential=essential)
    remedy = f"pip install {' '.join(to_install)}" if essential else f"pip install '{what}'"
    state = "broken" if present and essential else "missing"
    return Finding(what=what, state=state, found="; ".join(problems), remedy=remedy, essential=essential)


def language(subject: Subject) -> Iterator[Finding]:
    """Check the parsers of captions, for role graphs."""

    def parse() -> str:
        from ...language import role_parser

        _, parser = role_parser("rules")
        graph = parser("a man throws a ball to a dog")
        if not graph:
            raise ValueError("no graph of a plain sentence")
        return "amex's rules parse a sentence"

    yield tried(
        "captions to role graphs", parse, remedy="pip install --force-reinstall textblob lemminflect", extra="text"
    )
    models = sorted(point.name for point in entry_points(group="spacy_models"))
    if models:
        yield Finding(what="spaCy's models", state="ok", found=", ".join(models))
    else:
        remedy = (
            "only --parser spacy:MODEL needs one: pip install 'amex[spacy]'; python -m spacy download en_core_web_sm"
        )
        yield Finding(what="spaCy's models", state="missing", found="none is installed", remedy=remedy)
