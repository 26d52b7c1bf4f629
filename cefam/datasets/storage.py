"""Where data lies: a local folder, or anything that fsspec can read (``https://``, ``s3://`` ...). Places are strings."""

from pathlib import Path

from cefam.errors import MissingError


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL rather than a local path."""
    return "://" in str(place)


def join(folder: str | Path, name: str) -> str:
    """The place of a file in a folder."""
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def exists(place: str | Path) -> bool:
    """Whether there is a file."""
    if not is_url(place):
        return Path(place).is_file()
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(str(place))
    return bool(filesystem.isfile(path))


def read_text(place: str | Path) -> str:
    """A text file (UTF-8).

    Raises:
        MissingError: if it does not exist.
    """
    try:
        if not is_url(place):
            return Path(place).read_text(encoding="utf-8")
        import fsspec

        with fsspec.open(str(place), "rt", encoding="utf-8") as file:
            text: str = file.read()
            return text
    except FileNotFoundError as error:
        raise MissingError(f"There is no file {place}.") from error
