"""Reading text and CSV files that people made, and the descriptions that cefam writes; broken ones are named."""

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
    """A text file, without the byte-order mark that a spreadsheet writes; also in a zip (``zipfile.Path``).

    Raises:
        CefamError: where it is not UTF-8, with its name.
    """
    try:
        text = str(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CefamError(f"{path} is not UTF-8 text ({error}): save it in that encoding.") from error
    if "\0" in text:
        raise CefamError(f"{path} holds zero bytes, as UTF-16 does: save it as UTF-8 text.")
    return text


def readable(name: str) -> str:
    r"""A file's name that can be written and printed: bytes that are not UTF-8 are taken for Latin-1, as old archives have them.

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
    """A dataclass with the fields ``format`` and ``version``, from the JSON it was written as.

    Args:
        text: the JSON, or its bytes.
        form: the class.
        where: the file, for the message.
        advice: how to get a right one.
        check: whether the values make sense; it may raise like a missing key or a wrong type does.

    Raises:
        CefamError: where it is something else, or of another version.
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
    """The columns of a CSV file, and its rows with the lines they end on; a value that a row lacks is missing from its dict.

    Names of columns are compared without case and surrounding blanks.

    Args:
        path: the file.
        needed: columns that every row must have.
        comments: whether lines that begin with ``#`` are skipped.

    Raises:
        CefamError: for a column or value that is missing, more values than columns, or a quote that is never closed.
    """
    lines = io.StringIO(read_text(path), newline="").readlines()
    # A comment leaves an empty line, which is skipped, so that the numbers of the lines stay right.
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
