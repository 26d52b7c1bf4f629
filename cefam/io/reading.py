"""Reading of text files, CSV files and cefam's JSON descriptions; errors name the file."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cefam.errors import CefamError

T = TypeVar("T")


def read_text(path: Any) -> str:
    """Read a text file without its byte-order mark; ``path`` may also be a ``zipfile.Path``."""
    try:
        text = str(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CefamError(f"{path} is not UTF-8 text ({error}): save it in that encoding.") from error
    if "\0" in text:
        raise CefamError(f"{path} holds zero bytes, as UTF-16 does: save it as UTF-8 text.")
    return text


def readable(name: str) -> str:
    r"""A file name that can be printed: names that are not UTF-8 are decoded as Latin-1, as used in old archives.

    >>> readable("caf\udce9.png")
    'café.png'
    """
    try:
        return os.fsencode(name).decode("utf-8")
    except UnicodeDecodeError:
        return os.fsencode(name).decode("latin-1")


def read_description(
    text: str | bytes, form: type[T], where: str | Path, advice: str, check: Callable[[T], Any] = lambda found: True
) -> T:
    """Parse the JSON of a dataclass that has the fields ``format`` and ``version``.

    Args:
        text: the JSON, or its bytes.
        form: the class.
        where: the file, for the error message.
        advice: how to get a valid file, for the error message.
        check: returns whether the values are valid; may also raise ValueError, TypeError or KeyError.
    """
    about: Any = form
    try:
        values = json.loads(text)
        if (values["format"], values["version"]) == (about.format, about.version):
            found = form(**values)
            if check(found):
                return found
    except (ValueError, TypeError, KeyError):
        pass  # reported below
    raise CefamError(f"{where} is not a file of {about.format} version {about.version}: {advice}.")


def read_csv(
    path: Any, needed: Sequence[str] = (), comments: bool = False
) -> tuple[set[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a CSV file, and its rows with the number of their last line; missing values are left out of a row's dict.

    Column names are stripped and converted to lower case.

    Args:
        path: the file.
        needed: columns that every row must have.
        comments: whether to skip lines that start with ``#``.
    """
    lines = io.StringIO(read_text(path), newline="").readlines()
    # Comments become empty lines, which are skipped, so that line numbers stay correct.
    reader = csv.reader(("\n" if comments and line.lstrip().startswith("#") else line for line in lines), strict=True)
    names: list[str] = []
    rows = []
    try:
        for values in reader:
            if not values:
                continue
            if not names:
                names = _columns(values, needed, path)
                continue
            if len(values) > len(names):
                raise csv.Error("more values than columns: quote those that hold a comma")
            row = dict(zip(names, values, strict=False))
            lacking = [name for name in needed if name not in row]
            if lacking:
                raise csv.Error(f"no value for {lacking[0]!r}: the row is cut short")
            rows.append((reader.line_num, row))
        if not names:
            _columns([], needed, path)
    except csv.Error as error:
        reason = str(error).replace("unexpected end of data", "a quote is opened here and never closed")
        raise CefamError(f"{path}, line {reader.line_num}: {reason}.") from error
    return set(names), rows


def _columns(values: Sequence[str], needed: Sequence[str], path: Path) -> list[str]:
    names = [name.strip().lower() for name in values]
    if len(set(names)) < len(names):
        raise csv.Error("two columns have the same name")
    missing = sorted(set(needed) - set(names))
    if missing:
        raise CefamError(f"{path} has no column {', '.join(map(repr, missing))}.")
    return names
