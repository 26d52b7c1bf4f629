"""Files are written under a temporary name and then renamed: nobody ever sees half of one. Broken text is named when read."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, which becomes it when the block ends well and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may write the same, on machines that number them alike.
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.part")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other runs from writing into a folder while this one does; a run that is killed keeps nobody out.

    Raises:
        FileExistsError: where another run is at it.
    """
    lock = folder / ".lock"
    with lock.open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(
                f"Another run is writing into {folder}: wait for it, or name another folder."
            ) from None
        except (ImportError, OSError):  # Windows, and file systems of clusters that know no locks
            pass
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, wholly or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Any], about: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file, wholly or not at all.

    Args:
        path: where to.
        tensors: by name.
        about: metadata; several would be written in any order, and no two files were the same.

    Raises:
        OSError: where it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(about or {"format": "pt"}))
        except SafetensorError as error:  # its own word for a full disk
            raise OSError(f"{path} cannot be written: {error}.") from error


def read_text(path: Path) -> str:
    """A text file, without the byte-order mark that a spreadsheet writes.

    Raises:
        ValueError: where it is not UTF-8, with its name.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): save it in that encoding.") from error


def read_csv(path: Path, needed: Sequence[str] = ()) -> tuple[set[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a CSV file, and its rows with the lines they end on; a value that a row lacks is missing from its dict.

    Args:
        path: the file.
        needed: columns that every row must have.

    Raises:
        ValueError: for a column or value that is missing, more values than columns, or a quote that is never closed.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        columns = set(reader.fieldnames or ())
        if len(columns) < len(reader.fieldnames or ()):
            raise csv.Error("a column is there twice")
        missing = set(needed) - columns
        if missing:
            raise ValueError(f"{path} has no column {', '.join(map(repr, sorted(missing)))}.")
        for row in reader:
            if None in row:
                raise csv.Error("more values than columns: quote those that hold a comma")
            lacking = [name for name in needed if row[name] is None]
            if lacking:
                raise csv.Error(f"no value for {lacking[0]!r}: the row is cut short")
            rows.append((reader.line_num, {name: value for name, value in row.items() if value is not None}))
    except csv.Error as error:
        reason = str(error).replace("unexpected end of data", "a quote is opened below and never closed")
        raise ValueError(f"{path}, line {reader.line_num}: {reason}.") from error
    return columns, rows
