"""Errors a user can cause, each said in one line with its remedy."""


class UserError(Exception):
    """Bad input: the command line prints it as one line and exits with code 2."""


class NonFiniteError(RuntimeError):
    """An action or a loss became NaN or infinite; the last good checkpoint is kept."""
