"""The packages that amex needs, those that it can use, and what reads sentences."""

from __future__ import annotations

import platform
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

from packaging.requirements import Requirement

from ... import __version__
from .findings import ROOT, Finding, Subject, tried

# What brings nothing to those who use amex.
FOR_DEVELOPERS = {"bench", "dev", "test"}


def packages(subject: Subject) -> Iterator[Finding]:
    """Python, amex, its requirements in their versions, and its extras."""
    yield Finding(what="Python", state="ok", found=f"{platform.python_version()}, {sys.executable}", essential=True)
    yield Finding(what="amex", state="ok", found=f"{__version__}, {ROOT}", essential=True)
    needed: defaultdict[str, list[Requirement]] = defaultdict(list)
    for requirement in map(Requirement, requires("amex") or ()):
        extra = _extra(requirement)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            needed[extra].append(requirement)
    yield _installed("requirements", needed.pop("", []), essential=True)
    for extra in sorted(needed.keys() - FOR_DEVELOPERS):
        yield _installed(f"amex[{extra}]", needed[extra])


def _extra(requirement: Requirement) -> str:
    """The extra that a requirement belongs to; empty for what every installation needs."""
    _, _, name = str(requirement.marker or "").partition("extra == ")
    return name.strip("\"' ")


def _installed(what: str, wanted: list[Requirement], *, essential: bool = False) -> Finding:
    """Whether packages are there in the versions that are asked for."""
    there, problems, lacking = [], [], []
    for requirement in wanted:
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed")
        else:
            there.append(f"{requirement.name} {installed}")
            if requirement.specifier.contains(installed, prereleases=True):
                continue
            problems.append(f"{requirement.name} {installed} is not {requirement.specifier}")
        lacking.append(f"'{requirement.name}{requirement.specifier}'")
    if not problems:
        found = ", ".join(there) if len(there) < 6 else f"all {len(there)} packages"
        return Finding(what=what, state="ok", found=found, essential=essential)
    remedy = f"pip install {' '.join(lacking)}" if essential else f"pip install '{what}'"
    state = "broken" if there and essential else "missing"
    return Finding(what=what, state=state, found="; ".join(problems), remedy=remedy, essential=essential)


def language(subject: Subject) -> Iterator[Finding]:
    """The parsers of captions, for role graphs."""

    def parse() -> str:
        from ...language import role_parser

        _, parser = role_parser("rules")
        graph = parser("a man throws a ball to a dog")
        if not graph:
            raise ValueError("no graph of a plain sentence")
        return "amex's rules parse a sentence"

    yield tried("captions to role graphs", parse, remedy="pip install --force-reinstall textblob lemminflect")
    models = sorted(point.name for point in entry_points(group="spacy_models"))
    if models:
        yield Finding(what="spaCy's models", state="ok", found=", ".join(models))
    else:
        remedy = (
            "only --parser spacy:MODEL needs one: pip install 'amex[spacy]'; python -m spacy download en_core_web_sm"
        )
        yield Finding(what="spaCy's models", state="missing", found="none is installed", remedy=remedy)
