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


def read_csv(path: Path, needed: Sequence[str] = ()) -> tuple[set[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a CSV file, and its rows with the lines they end on; a value that a row lacks is missing from its dict.

    Names of columns are compared without case and surrounding blanks.

    Args:
        path: the file.
        needed: columns that every row must have.

    Raises:
        CefamError: for a column or value that is missing, more values than columns, or a quote that is never closed.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        columns = set(reader.fieldnames)
        if len(columns) < len(reader.fieldnames):
            raise csv.Error("two columns have the same name")
        missing = set(needed) - columns
        if missing:
            raise CefamError(f"{path} has no column {', '.join(map(repr, sorted(missing)))}.")
        for row in reader:
            if None in row:
                raise csv.Error("more values than columns: quote those that hold a comma")
            lacking = [name for name in needed if row[name] is None]
            if lacking:
                raise csv.Error(f"no value for {lacking[0]!r}: the row is cut short")
            rows.append((reader.line_num, {name: value for name, value in row.items() if value is not None}))
    except csv.Error as error:
        reason = str(error).replace("unexpected end of data", "a quote is opened here and never closed")
        raise CefamError(f"{path}, line {reader.line_num}: {reason}.") from error
    return columns, rows
