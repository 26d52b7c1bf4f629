"""Access to data by local path, or by a URL that fsspec can read (``https://``, ``s3://`` ...).

A remote file is downloaded completely, and its checksum verified, before it is read; a failed or truncated download is retried.
``CEFAM_CACHE`` names a folder for downloaded files, which several processes may share. Without it, files are downloaded to a
temporary folder and deleted after use.
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
WAIT = 0.5  # seconds before the first retry; doubled for each further one
BLOCK = 2**20


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL rather than a local path."""
    return "://" in str(place)


def join(folder: str | Path, name: str) -> str:
    """Path or URL of a file in a folder."""
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def read_bytes(place: str | Path) -> bytes:
    """Contents of a small file."""
    if is_url(place):
        return bytes(_attempts(place, lambda filesystem, path: filesystem.cat_file(path)))
    try:
        return Path(place).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError(f"There is no file {place}.") from error


@contextmanager
def local(place: str | Path, sha256: str = "") -> Iterator[Path]:
    """Path of a local file, or of a downloaded copy of a remote one.

    Args:
        place: a path or a URL.
        sha256: checksum of a remote file; "" if unknown: the copy is then neither verified nor cached.
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


@cache  # verified once per process
def _cached(place: str, sha256: str, folder: str) -> Path:
    """Path of the cached copy, named by its checksum; one process downloads it while the others wait."""
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
    """Call ``act`` on a remote file; failures are retried with exponential backoff."""
    import fsspec

    for attempt in range(1, ATTEMPTS + 1):
        try:
            filesystem, path = fsspec.core.url_to_fs(str(place), skip_instance_cache=True)
            return act(filesystem, path)
        except FileNotFoundError as error:
            raise MissingError(f"There is no file {place}.") from error
        except (ImportError, ValueError) as error:  # the protocol is unknown, or its package is not installed
            raise CefamError(f"{place} cannot be read: {error}.") from error
        except Exception as error:  # exception types differ between protocols
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
                raise  # error of the local disk
            if attempt == ATTEMPTS:
                raise CefamError(
                    f"{place} cannot be fetched: {type(error).__name__}: {error} (attempt {attempt} of {ATTEMPTS})."
                ) from error
            time.sleep(WAIT * 2 ** (attempt - 1))
    raise AssertionError("unreachable")
