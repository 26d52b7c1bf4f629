"""Atomic file writing: files are written under a temporary name, then renamed."""

import csv
import errno
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from cefam.errors import CefamError, ExistsError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of ``path``: renamed to ``path`` when the block succeeds, removed when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes, on several machines, may write the same file.
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.part")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # Python does not say which file it was
            raise CefamError(f"{path} cannot be written: no space is left on its disk.") from error
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs; the lock of a killed run is released automatically."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ExistsError(f"Another run is writing into {folder}: wait for it, or name another folder.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # removed while held; a waiting filelock detects the removal
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a .safetensors file atomically."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # raised, for example, if the disk is full
            raise CefamError(f"{path} cannot be written: {error}.") from error


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
