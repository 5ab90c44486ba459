"""The result of a check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import MissingExtra, first_line

# The folder of the package that is examined.
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is checked besides the machine.

    Attributes:
        folder: the folder of a store, which need not exist.
        bucket: an address such as s3://BUCKET/NAME that must be reachable; empty for none.
    """

    folder: Path
    bucket: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table.

    Attributes:
        what: the subject, in a few words.
        state: ``ok``: it works; ``missing``: it is not installed; ``broken``: it is installed and fails.
        found: the version or capacity, or the error.
        remedy: what to do; empty if nothing is to be done.
        essential: whether amex cannot work without it.
    """

    what: str
    state: Literal["ok", "missing", "broken"]
    found: str = ""
    remedy: str = ""
    essential: bool = False


def tried(
    what: str, attempt: Callable[[], str], *, remedy: str, essential: bool = False, extra: str | None = None
) -> Finding:
    """Return the finding of an attempt, which returns a description of what it found.

    Args:
        remedy: what to do if the attempt fails.
    """
    try:
        return Finding(what=what, state="ok", found=attempt(), essential=essential)
    except (ModuleNotFoundError, MissingExtra) as error:
        if extra is not None:
            return Finding(what=what, state="missing", found="not installed", remedy=f"pip install 'amex[{extra}]'")
        return Finding(what=what, state="missing", found=first_line(error), remedy=remedy, essential=essential)
    except Exception as error:  # whatever a damaged installation may raise
        detail = f"{type(error).__name__}: {first_line(error)}"
        return Finding(what=what, state="broken", found=detail, remedy=remedy, essential=essential)
