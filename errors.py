"""The base class of errors that a user can fix, and helpers that write their messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

# Characters of an unusable text that a message quotes.
QUOTED = 80
# Limits of a search for similar names: names, and characters of the unknown one. A million ids take half a second.
COMPARED = 2_000_000
LONGEST_NAME = 200
# Minimum similarity of a suggested name, of 100: the share of letters that both have in the same order.
SIMILAR = 60


class AmexError(Exception):
    """An error that a user can fix. Its message is one line with the cause and the remedy.

    The command line prints it without a traceback and exits with status 1. Names from files are escaped in it, so that
    it is safe to print and to store.
    """

    def __str__(self) -> str:
        return printable(Exception.__str__(self), keep="\n")


class MissingExtra(AmexError):
    """A package is not installed. The message names the extra that installs it."""


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Name the extra that installs a package, where the import of that package fails.

        with needs("text", "CLIP"):
            import transformers

    Args:
        extra: an extra of setup.cfg.
        what: what cannot work without the package; the subject of the message.

    Raises:
        MissingExtra: if an import in the block fails.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({first_line(error)})"
        raise MissingExtra(f"{what} needs {package or 'a package'}{reason}: pip install 'amex[{extra}]'") from error


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error; its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: str, *, keep: str = "") -> str:
    """Escape characters that are unsafe in a terminal, a log or UTF-8, as ``repr`` does.

    These are control characters, marks that reverse the direction of writing, and lone surrogates.

    Args:
        keep: characters to leave as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 clip``, ``2,000 clips``, ``2 tries``, ``3 boxes``."""
    if count == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{count:,} {noun[:-1]}ies"
    return f"{count:,} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return the names most similar to ``name``, the most similar first; case is ignored."""
    if not names or len(name) > LONGEST_NAME:
        return []
    from rapidfuzz import fuzz, process

    choices = islice(names, COMPARED)
    matches = process.extract(
        name, choices, scorer=fuzz.ratio, processor=str.casefold, score_cutoff=SIMILAR, limit=count
    )
    return [match for match, _, _ in matches]


def did_you_mean(name: str, names: Iterable[str], before: str = "; ", count: int = 3) -> str:
    """Return ``; did you mean 'a' or 'b'?``, the end of a message about an unknown name; empty if no name is similar.

    Args:
        before: the text before it.
        count: maximum number of names.
    """
    near = " or ".join(map(repr, nearest(name, names, count)))
    return f"{before}did you mean {near}?" if near else ""


def check_text(name: str, text: str) -> None:
    """Raise ValueError for a text that stores and logs cannot hold."""
    if "\0" in text:
        raise ValueError(f"{name} contains a NUL character: {text[:QUOTED]!r}")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = f"a lone surrogate at {error.start}"
        raise ValueError(f"{name} is not valid Unicode ({reason}): {text[:QUOTED]!r}") from error
