"""Where data lies: a local folder, or anything that fsspec can read (``https://``, ``s3://`` ...). Places are strings."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cefam.errors import CefamError, MissingError


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL rather than a local path."""
    return "://" in str(place)


def join(folder: str | Path, name: str) -> str:
    """The place of a file in a folder."""
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def exists(place: str | Path) -> bool:
    """Whether there is a file.

    Raises:
        CefamError: where nobody answers.
    """
    if not is_url(place):
        return Path(place).is_file()
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(str(place))
        return bool(filesystem.exists(path))
    except Exception as error:  # every protocol has errors of its own
        raise CefamError(f"{place} cannot be reached ({type(error).__name__}: {error}).") from error


@contextmanager
def opened(place: str | Path) -> Iterator[IO[bytes]]:
    """A file, open for reading.

    Raises:
        MissingError: where there is none.
    """
    try:
        if is_url(place):
            import fsspec

            file: IO[bytes] = fsspec.open(str(place), "rb").open()
        else:
            file = Path(place).open("rb")  # noqa: SIM115  closed below
    except FileNotFoundError as error:
        raise MissingError(f"There is no file {place}.") from error
    with file:
        yield file


def read_text(place: str | Path) -> str:
    """A text file (UTF-8).

    Raises:
        MissingError: where there is none.
    """
    with opened(place) as file:
        return file.read().decode("utf-8")
