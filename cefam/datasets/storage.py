"""Where data lies: a local folder, or anything that fsspec can read (``https://``, ``s3://`` ...). Places are strings.

A remote file is always fetched whole and compared with its checksum before it is read: a connection that is cut, or an answer that is
short, is another attempt, never a short epoch. ``CEFAM_CACHE`` names a folder that keeps what was fetched; several processes may
share it. Without one, a file is fetched to a temporary place and forgotten after it was read.
"""

import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from cefam.errors import CefamError, MissingError
from cefam.io.files import replacing

CACHE = "CEFAM_CACHE"
ATTEMPTS = 5
WAIT = 0.5  # seconds before the second attempt; twice as long before each further one
BLOCK = 2**20


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL rather than a local path."""
    return "://" in str(place)


def join(folder: str | Path, name: str) -> str:
    """The place of a file in a folder."""
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def exists(place: str | Path) -> bool:
    """Whether there is a file (a small one: it is asked for its contents, since `exists` of fsspec says no where nobody answers).

    Raises:
        CefamError: where nobody answers.
    """
    if not is_url(place):
        return Path(place).is_file()
    try:
        read_bytes(place)
    except MissingError:
        return False
    return True


def read_bytes(place: str | Path) -> bytes:
    """What a small file holds.

    Raises:
        MissingError: where there is none.
        CefamError: where it cannot be fetched.
    """
    if is_url(place):
        return bytes(_attempts(place, lambda filesystem, path: filesystem.cat_file(path)))
    try:
        return Path(place).read_bytes()
    except FileNotFoundError as error:
        raise MissingError(f"There is no file {place}.") from error


@contextmanager
def local(place: str | Path, sha256: str = "") -> Iterator[Path]:
    """The file itself, or a copy of a remote one.

    Args:
        place: a path or a URL.
        sha256: of a remote file; "": it is not known, so the copy is not compared and not kept.

    Raises:
        MissingError: where there is none.
        CefamError: where it cannot be fetched, or is another one than it should be.
    """
    if not is_url(place):
        if not Path(place).is_file():
            raise MissingError(f"There is no file {place}: copy it again, or see whether its disk is still there.")
        yield Path(place)
    elif sha256 and os.environ.get(CACHE):
        yield _cached(str(place), sha256, os.environ[CACHE])
    else:
        with tempfile.TemporaryDirectory(prefix="cefam-") as folder:
            path = Path(folder) / "fetched"
            _fetch(place, path, sha256)
            yield path


@cache  # compared once in every process
def _cached(place: str, sha256: str, folder: str) -> Path:
    """The copy in the cache, named by its checksum; fetched by one process, the others wait for it."""
    path = Path(folder).expanduser() / sha256[:2] / sha256
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not (path.is_file() and digest_of(path) == sha256):
            with replacing(path) as temporary:
                _fetch(place, temporary, sha256)
    return path


def digest_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(place: str | Path, target: Path, sha256: str) -> None:
    def fetch(filesystem: Any, path: str) -> None:
        with filesystem.open(path, "rb") as file, target.open("wb") as out:
            while block := file.read(BLOCK):
                out.write(block)
        if sha256 and digest_of(target) != sha256:
            raise OSError("its checksum is not the one that the manifest gives")

    _attempts(place, fetch)


def _attempts(place: str | Path, act: Callable[[Any, str], Any]) -> Any:
    """Do something with a remote file; an attempt that fails is made again, after a while.

    Raises:
        MissingError: where there is no such file.
        CefamError: where the last attempt fails, too.
    """
    import fsspec

    for attempt in range(1, ATTEMPTS + 1):
        try:
            filesystem, path = fsspec.core.url_to_fs(str(place), skip_instance_cache=True)
            return act(filesystem, path)
        except FileNotFoundError as error:
            raise MissingError(f"There is no file {place}.") from error
        except (ImportError, ValueError) as error:  # a protocol that is not installed, or not known
            raise CefamError(f"{place} cannot be read: {error}.") from error
        except Exception as error:  # every protocol has errors of its own
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
                raise  # of the local disk
            if attempt == ATTEMPTS:
                raise CefamError(
                    f"{place} cannot be fetched: {type(error).__name__}: {error} (attempt {attempt} of {ATTEMPTS})."
                ) from error
            time.sleep(WAIT * 2 ** (attempt - 1))
    raise AssertionError("unreachable")
