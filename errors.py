"""The root of every error that amex raises on purpose: one line that names the thing at fault and what to do."""


class AmexError(Exception):
    """Anything a user can mend. The command line prints it without a traceback and exits with status 1."""
