"""The root of every error that amex raises on purpose: one line with the thing at fault and what to do. Their texts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

# Characters of an unusable text that a message quotes.
QUOTED = 80
# Names that are compared with one that is unknown, at most, and characters of that: half a second for a million ids.
COMPARED = 2_000_000
LONGEST_NAME = 200
# How similar a name is to what is meant, of 100: the share of letters that both have in the same order.
SIMILAR = 60


class AmexError(Exception):
    """Anything a user can mend. The command line prints it without a traceback and exits with status 1.

    Its text can be printed and stored: what it quotes of a stranger's names is escaped.
    """

    def __str__(self) -> str:
        return printable(Exception.__str__(self), keep="\n")


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: str, *, keep: str = "") -> str:
    """Text that is safe in a terminal, a log and UTF-8: what ``repr`` would escape is escaped, as ``\\x1b``.

    These are control characters, marks that reverse the direction of writing, and surrogates without a partner.

    Args:
        keep: characters to leave as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def plural(count: int, noun: str) -> str:
    """``1 clip``, ``2,000 clips``, ``2 tries``: a count and what it counts, in the singular for one."""
    if count != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"
    return f"{count:,} {noun}"


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Those of ``names`` that ``name`` may be a slip of, the likeliest first; letters of either case are the same."""
    if not names or len(name) > LONGEST_NAME:
        return []
    from rapidfuzz import fuzz, process

    choices = islice(names, COMPARED)
    matches = process.extract(
        name, choices, scorer=fuzz.ratio, processor=str.casefold, score_cutoff=SIMILAR, limit=count
    )
    return [match for match, _, _ in matches]


def did_you_mean(name: str, names: Iterable[str], before: str = "; ", count: int = 3) -> str:
    """``; did you mean 'a' or 'b'?``: the end of a message about an unknown ``name``; empty where no name is near.

    Args:
        before: what joins it to the message.
        count: names that it gives, at most.
    """
    near = " or ".join(map(repr, nearest(name, names, count)))
    return f"{before}did you mean {near}?" if near else ""


def check_text(name: str, text: str) -> None:
    """Raises ValueError for a text that stores, logs and other programs cannot hold."""
    if "\0" in text:
        raise ValueError(f"{name} contains a NUL character: {text[:QUOTED]!r}")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"a lone surrogate at {error.start}"
        raise ValueError(f"{name} is not valid Unicode ({where}): {text[:QUOTED]!r}") from error
