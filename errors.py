"""The root of every error that amex raises on purpose: one line with the thing at fault and what to do. Their texts."""

# Characters of an unusable text that a message quotes.
QUOTED = 80


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


def check_text(name: str, text: str) -> None:
    """Raises ValueError for a text that stores, logs and other programs cannot hold."""
    if "\0" in text:
        raise ValueError(f"{name} contains a NUL character: {text[:QUOTED]!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"a lone surrogate at {error.start}"
        raise ValueError(f"{name} is not valid Unicode ({where}): {text[:QUOTED]!r}") from error
