"""Errors written for the user, and suggestions for misspelt names."""

from collections.abc import Iterable
from difflib import get_close_matches


class CefamError(ValueError):
    """An error with a message for the user: what is wrong, the value, and how to fix it.

    The commands print it and exit with ``status``. Every other exception is reported as unexpected.
    """

    status = 1


class CefamWarning(UserWarning):
    """A warning for the user; the command continues."""


class MissingError(CefamError, FileNotFoundError):
    """A file or folder that is needed does not exist."""


class ExistsError(CefamError, FileExistsError):
    """A result already exists and is not overwritten."""


def near(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A suggestion for a misspelt name, to append to an error message; empty if no known name is similar.

    >>> near("strped", ["striped", "wing"])
    " Did you mean 'striped'?"
    """
    matches = get_close_matches(name, [candidate for candidate in known if candidate], n=3, cutoff=cutoff)
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""
