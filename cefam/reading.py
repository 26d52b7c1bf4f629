"""Reading text and CSV files that people made; broken ones are named."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from cefam.errors import CefamError


def read_text(path: Path) -> str:
    """A text file, without the byte-order mark that a spreadsheet writes.

    Raises:
        CefamError: where it is not UTF-8, with its name.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CefamError(f"{path} is not UTF-8 text ({error}): save it in that encoding.") from error


def read_csv(
    path: Path, needed: Sequence[str] = (), comments: bool = False
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
