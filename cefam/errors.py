"""Errors written for the user, and suggestions for misspelt names."""

from collections.abc import Iterable
from difflib import get_close_matches


class CefamError(ValueError):
    """An error whose message is a sentence for the user: what is wrong, with which value, and what to do.

    The commands print it and exit with ``status``. Every other exception is reported as unexpected.
    """

    status = 1


class CefamWarning(UserWarning):
    """Something the user should know; the work continues."""


class MissingError(CefamError, FileNotFoundError):
    """A file or folder that is needed does not exist."""


class ExistsError(CefamError, FileExistsError):
    """A result already exists and is not overwritten."""


def near(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known names that are close to a misspelt one, as a question that follows a sentence; empty if there are none.

    >>> near("strped", ["striped", "wing"])
    " Did you mean 'striped'?"
    """
    matches = get_close_matches(name, [candidate for candidate in known if candidate], n=3, cutoff=cutoff)
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""
