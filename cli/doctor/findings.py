"""What a check says of one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import first_line

# The folder of the package that is examined.
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is examined, besides the machine.

    Attributes:
        folder: where a store is, or is to be.
        bucket: an address such as s3://BUCKET/NAME that must be reachable; empty for none.
    """

    folder: Path
    bucket: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table.

    Attributes:
        what: the thing, in a few words.
        state: ``ok``: it works; ``missing``: it is not here; ``broken``: it is here and does not work.
        found: what there is, or why it does not work.
        remedy: what to do; empty where nothing is to be done.
        essential: whether amex is of no use without it.
    """

    what: str
    state: Literal["ok", "missing", "broken"]
    found: str = ""
    remedy: str = ""
    essential: bool = False


def tried(what: str, attempt: Callable[[], str], *, remedy: str, essential: bool = False) -> Finding:
    """What becomes of an attempt, which returns what it found.

    Args:
        remedy: what to do if it fails.
    """
    try:
        return Finding(what=what, state="ok", found=attempt(), essential=essential)
    except ModuleNotFoundError as error:
        return Finding(what=what, state="missing", found=first_line(error), remedy=remedy, essential=essential)
    except Exception as error:  # whatever a damaged installation may raise
        found = f"{type(error).__name__}: {first_line(error)}"
        return Finding(what=what, state="broken", found=found, remedy=remedy, essential=essential)
