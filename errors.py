"""The root of every error that amex raises on purpose: one line that names the thing at fault and what to do."""


class AmexError(Exception):
    """Anything a user can mend. The command line prints it without a traceback and exits with status 1."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
